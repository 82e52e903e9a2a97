"""The losses of classifiers as kronfluence asks for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


def kronfluence_task() -> Any:
    """Sums over examples, and over places where there are any, with labels that the model draws."""
    from kronfluence.task import Task

    class Classes(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            outputs = model(batch[0]).flatten(0, -2)
            drawn = torch.multinomial(outputs.detach().softmax(-1), 1) if sample else batch[1]
            return cross_entropy(outputs, drawn.flatten(), reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten(), reduction="sum")

    return Classes()
