"""Memory: the peak of a large solve, and what many solves and dropped operators leave behind."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import ihvp
from tests.benchmarks.models import MODELS
from tests.benchmarks.problems import digits
from tests.benchmarks.rows import Case, Row

_LARGE = 50_000_000
_SOLVES, _SETTLED, _OPERATORS = 1000, 50, 100


def measure(framework: str, device: str) -> list[Row]:
    """Growth first: a large solve leaves freed memory with the process.

    So few products are eager by default, too.
    """
    growth = [] if framework == "torch-eager" else [_many_solves(framework), _dropped_operators(framework)]
    return [*growth, _peak(framework, _LARGE)]


def _many_solves(framework: str) -> Row:
    problem = digits()
    model = MODELS[framework](problem)
    objective, v = model.objective(), model.native(problem.test_gradients(1)[:, 0])
    at_first = 0
    for done in range(_SOLVES):
        if done == _SETTLED:
            at_first = resident()
        ihvp.solve(ihvp.Hessian(objective), v, damping=0.1, solver=ihvp.CG(rtol=1e-2))
    growth = resident() - at_first
    return Row(
        what=f"growth over {_SOLVES:,} solves after the first {_SETTLED}, digits {problem.name}",
        ours=f"{growth / 2**20:.1f} MiB",
        peer="resident at first",
        beside=f"{at_first / 2**20:.0f} MiB",
        value=growth / at_first,
        low=-1.0,
        high=0.05,
    )


def _dropped_operators(framework: str) -> Row:
    problem = digits(256, 256, train=1797, steps=1)
    model = MODELS[framework](problem)
    objective, v = model.objective(), model.native(problem.directions())
    at_first = 0
    for done in range(_OPERATORS):
        if done == _OPERATORS // 10:
            at_first = resident()
        ihvp.Hessian(objective) @ v
    growth = resident() - at_first
    return Row(
        what=f"growth over {_OPERATORS} dropped operators after the first tenth, digits {problem.name}",
        ours=f"{growth / 2**20:.1f} MiB",
        peer="resident at first",
        beside=f"{at_first / 2**20:.0f} MiB",
        value=growth / at_first,
        low=-1.0,
        high=0.05,
    )


def peak_of(call: Callable[[], Any]) -> int:
    """The most bytes that the process held at a time during a call."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    call()
    return _status("VmHWM")


def _peak(framework: str, size: int) -> Row:
    """CG on a quadratic with four distinct curvatures, which takes four products."""
    objective, v = QUADRATICS[framework](size)
    before = resident()
    solutions: list[ihvp.Solution] = []
    peak = peak_of(
        lambda: solutions.append(ihvp.solve(ihvp.Hessian(objective), v(), solver=ihvp.CG(rtol=1e-4)))
    )
    vectors = (peak - before) / (4 * size)
    return Row(
        what=f"peak of CG beyond the parameters, P = {size:.0e}, in P-vectors",
        ours=f"{vectors:.1f} vectors, {solutions[0].matvecs} products, {peak / 2**30:.1f} GiB in all",
        peer="v, x, r, p, H p",
        beside="5 vectors",
        value=vectors,
        high=7.0,
    )


def _torch(size: int, compiled: bool | None = None) -> tuple[ihvp.Objective, Callable[[], Any]]:
    import torch

    from ihvp_torch import TorchBackend

    scales = torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None]

    def loss(w: Any, batch: Any) -> Any:
        return (w["x"].square().sum(dim=1, keepdim=True) * scales).sum()

    params = {"x": torch.ones(4, size // 4)}
    backend = TorchBackend(params) if compiled is None else TorchBackend(params, compile=compiled)
    return ihvp.Objective(loss, params, backend=backend), lambda: torch.ones(size)


def _jax(size: int) -> tuple[ihvp.Objective, Callable[[], Any]]:
    import jax.numpy as jnp

    scales = jnp.array([1.0, 2.0, 3.0, 4.0])

    def loss(x: Any, batch: Any) -> Any:
        return (x**2).sum(axis=1) @ scales

    return ihvp.Objective(loss, jnp.ones((4, size // 4))), lambda: jnp.ones(size)


def _tf(size: int) -> tuple[ihvp.Objective, Callable[[], Any]]:
    import tensorflow as tf

    scales = tf.constant([1.0, 2.0, 3.0, 4.0])

    def loss(w: Any, batch: Any) -> Any:
        return tf.tensordot(tf.reduce_sum(tf.square(w[0]), axis=1), scales, 1)

    x = tf.Variable(tf.ones((4, size // 4)))
    return ihvp.Objective(loss, [x]), lambda: np.ones(size, dtype=np.float32)


def _numdiff(size: int) -> tuple[ihvp.Objective, Callable[[], Any]]:
    scales = np.array([2.0, 4.0, 6.0, 8.0], dtype=np.float32)[:, None]
    x = np.ones((4, size // 4), dtype=np.float32)
    objective = ihvp.Objective(grad=lambda x, batch: scales * x, params=x)
    return objective, lambda: np.ones(size, dtype=np.float32)


def resident() -> int:
    """The bytes that the process holds."""
    gc.collect()
    return _status("VmRSS")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


QUADRATICS: dict[str, Callable[[int], tuple[ihvp.Objective, Callable[[], Any]]]] = {
    "torch": _torch,
    "torch-eager": partial(_torch, compiled=False),
    "torch-compiled": partial(_torch, compiled=True),
    "jax": _jax,
    "tf": _tf,
    "numdiff": _numdiff,
}

CASE = Case(
    "memory", "Memory", {framework: partial(measure, framework) for framework in QUADRATICS}, often=False
)
