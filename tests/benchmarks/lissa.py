"""LiSSA: 1,000 steps with batches of 50 digits, one vector."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import ihvp
from tests.benchmarks.models import MODELS, TorchModel
from tests.benchmarks.problems import digits
from tests.benchmarks.rows import Case, Row, seconds
from tests.benchmarks.timing import in_turns

_STEPS, _BATCH, _DAMPING, _SCALE = 1000, 50, 0.02, 50.0
# pyDVL's steps all cost the same, and so many of them tell.
_FEWER = 50
_BARS = {"torch": 0.7, "torch-eager": 1.2, "torch-compiled": 0.7, "jax": 0.4}


def measure(framework: str, device: str) -> list[Row]:
    """Beside a bare loop over double-backward products in torch, and pyDVL."""
    problem = digits(32)
    model = MODELS[framework](problem, device)
    torch_model = model if isinstance(model, TorchModel) else TorchModel(problem)
    rhs = problem.test_gradients(1)[:, 0]
    v, solver = (
        model.native(rhs),
        ihvp.LiSSA(scale=_SCALE, recursion_depth=_STEPS, batch_size=_BATCH, average=0.0, rtol=None),
    )
    sides: dict[str, Callable[[], Any]] = {
        "ihvp": lambda: ihvp.solve(model.hessian(), v, damping=_DAMPING, solver=solver).x,
        "loop": _bare_loop(torch_model, rhs),
    }
    if isinstance(model, TorchModel):
        sides["pydvl"] = _pydvl(torch_model, rhs)
    times = in_turns(sides, budget=5.0, felt=framework == "torch")
    residual = problem.residual(_numpy(sides["ihvp"]()), rhs, _DAMPING)
    other = problem.residual(_numpy(sides["loop"]()), rhs, _DAMPING)
    what = f"LiSSA, {_STEPS:,} steps, batch {_BATCH}, digits {problem.name}"
    ours = f"{seconds(times['ihvp'] / _STEPS)} a step"
    rows = [
        Row(
            what=what,
            ours=ours,
            peer="bare torch loop",
            beside=f"{seconds(times['loop'] / _STEPS)} a step",
            value=times.ratio("ihvp", "loop"),
            rival=True,
            high=_BARS[framework],
            residual=residual,
            peer_residual=other,
        )
    ]
    if "pydvl" in sides:
        rows.append(
            Row(
                what=what,
                ours=ours,
                peer="pyDVL",
                beside=f"{seconds(times['pydvl'] / _FEWER)} a step",
                value=times.ratio("ihvp", "pydvl") * _FEWER / _STEPS,
                rival=True,
                high=1 / 3,
                residual=residual,
            )
        )
    return rows


def _bare_loop(model: TorchModel, rhs: np.ndarray) -> Callable[[], Any]:
    import torch

    v, (x, y), weights = model.native(rhs), model.batch, model.weights
    sizes = [w.numel() for w in weights]

    def loop() -> Any:
        s = v.clone()
        for _ in range(_STEPS):
            numbers = torch.randint(len(y), (_BATCH,), device=v.device)
            value = model.loss(model.module, (x[numbers], y[numbers]))
            slopes = torch.autograd.grad(value, weights, create_graph=True)
            pieces = [piece.view(w.shape) for piece, w in zip(s.split(sizes), weights, strict=True)]
            second = torch.autograd.grad(slopes, weights, pieces)
            product = torch.cat([part.reshape(-1) for part in second])
            s = v + (1 - _DAMPING / _SCALE) * s - product / _SCALE
        return s / _SCALE

    return loop


def _pydvl(model: TorchModel, rhs: np.ndarray) -> Callable[[], Any]:
    from pydvl.influence.torch.batch_operation import HessianBatchOperation
    from pydvl.influence.torch.operator import LissaOperator
    from torch.utils.data import DataLoader, TensorDataset

    v = model.native(rhs)
    data = DataLoader(TensorDataset(*model.batch), batch_size=_BATCH)
    logging.getLogger("pydvl").setLevel(logging.ERROR)

    def solve() -> Any:
        operator = LissaOperator(
            HessianBatchOperation(model.module, model.criterion),
            data,
            regularization=_DAMPING,
            maxiter=_FEWER,
            scale=_SCALE,
            rtol=0.0,
            warn_on_max_iteration=False,
        )
        return operator.apply(v)

    return solve


def _numpy(x: Any) -> np.ndarray:
    return x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)


CASE = Case("lissa", "LiSSA", {framework: partial(measure, framework) for framework in _BARS})
