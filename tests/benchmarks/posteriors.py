"""Laplace approximations beside laplace-torch: the same numbers, how long they take, and their memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import ihvp
from tests.benchmarks.memory import peak_of, resident
from tests.benchmarks.rows import Case, Row, seconds
from tests.benchmarks.timing import in_turns

_PRIOR, _CLASSES = 0.7, 10
# Subset and structure in the peer's words, biases, sizes of the network, examples and questions.
_TASKS = {
    "full": ("all", "full", True, (40, 30), 1000, 500),
    "last layer": ("last_layer", "full", True, (40, 30), 1000, 500),
    "Kronecker": ("all", "kron", False, (100, 100), 1000, 200),
}


def measure(device: str) -> list[Row]:
    """Fit, evidence and predictions, with the largest relative difference of the two sides' numbers."""
    if device != "cpu":
        return []
    return [row for name in _TASKS for row in _rows(name)]


def _rows(name: str) -> list[Row]:
    subset, structure, bias, (width, hidden), count, questions = _TASKS[name]
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(width, hidden, bias=bias), nn.Tanh(), nn.Linear(hidden, _CLASSES, bias=bias)
    ).double()
    x, new = torch.randn(count, width).double(), torch.randn(questions, width).double()
    y = torch.randint(0, _CLASSES, (count,))

    def ours() -> tuple[float, Any]:
        objective = ihvp.Objective(
            lambda outputs, batch: cross_entropy(outputs, batch[1]),
            net,
            (x, y),
            predict=lambda net, batch: net(batch[0]),
            only="2" if subset == "last_layer" else None,
        )
        curvature = ihvp.KFAC(objective) if structure == "kron" else None
        posterior = ihvp.Laplace(objective, curvature, prior_precision=_PRIOR)
        evidence = posterior.log_marginal_likelihood().value
        return evidence, posterior.predictive((new, torch.zeros(questions))).covariance

    def theirs(backend: str) -> tuple[float, Any]:
        from laplace import Laplace, curvature

        posterior = Laplace(
            net,
            "classification",
            subset_of_weights=subset,
            hessian_structure=structure,
            prior_precision=_PRIOR,
            backend=getattr(curvature, backend),
        )
        posterior.fit(DataLoader(TensorDataset(x, y), batch_size=count))
        evidence = posterior.log_marginal_likelihood().item()
        return evidence, posterior._glm_predictive_distribution(new)[1].detach().numpy()

    peers = {name: partial(theirs, name) for name in ("CurvlinopsGGN", "BackPackGGN")}
    (evidence, covariance), (expected, reference) = ours(), peers["CurvlinopsGGN"]()
    difference = max(
        abs(evidence / expected - 1), float(np.abs(covariance - reference).max() / np.abs(reference).max())
    )
    times = in_turns({"ihvp": ours, **peers}, budget=4.0)
    peer = times.fastest(*peers)
    size = sum(part.numel() for part in net.parameters())
    what = f"Laplace, {name}, network of P = {size:,}: fit, evidence, {questions} predictions"
    memory, beside = _memory(ours), _memory(peers[peer])
    label = f"laplace-torch, {peer}"
    return [
        Row(
            what=what,
            ours=seconds(times["ihvp"]),
            peer=label,
            beside=seconds(times[peer]),
            value=times.ratio("ihvp", peer),
            high=1.0,
            rival=True,
        ),
        Row(
            what=f"{what}, largest relative difference",
            ours=f"{evidence:.6f}",
            peer="laplace-torch, CurvlinopsGGN",
            beside=f"{expected:.6f}",
            value=difference,
            high=1e-5,
        ),
        Row(
            what=f"{what}, peak of memory",
            ours=f"{memory / 1e6:.0f} MB",
            peer=label,
            beside=f"{beside / 1e6:.0f} MB",
            value=memory / beside,
        ),
    ]


def _memory(call: Callable[[], Any]) -> int:
    before = resident()
    return max(1, peak_of(call) - before)


CASE = Case("posteriors", "Laplace approximations", {"torch": measure}, often=False)
