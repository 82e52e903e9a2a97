"""Networks trained on the digits that scikit-learn ships, by SGD with momentum."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


def dense() -> nn.Module:
    """64-256-256-10 with ReLU, P = 85,002."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def trained(
    make: Callable[[], nn.Module],
    x: Tensor,
    y: Tensor,
    *,
    seed: int = 0,
    epochs: int = 30,
    decay: float = 1e-3,
    rate: float = 0.05,
) -> nn.Module:
    """A new network after so many epochs in batches of 50, with momentum 0.9 and this weight decay."""
    torch.manual_seed(seed)
    net = make()
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9, weight_decay=decay)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net
