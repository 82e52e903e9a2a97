"""Time that solvers spend outside the backend's products, on a network of 669,706 parameters."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import ihvp
from ihvp.eigen.eigsh import eigsh
from tests.benchmarks.models import MODELS
from tests.benchmarks.problems import wide
from tests.benchmarks.rows import Case, Row, seconds
from tests.benchmarks.timing import finish, once

_DAMPING, _SCALE = 1.0, 10.0


def measure(framework: str, device: str) -> list[Row]:
    """The share of each solver's time."""
    problem = wide()
    model = MODELS[framework](problem, device)
    objective = model.objective()
    watch = _Stopwatch(objective.backend)
    H = ihvp.Hessian(objective)
    v, V = (model.native(problem.directions(*columns)) for columns in ((), (8,)))
    solve = partial(ihvp.solve, H, damping=_DAMPING, on_failure="return")
    lissa = ihvp.LiSSA(scale=_SCALE, recursion_depth=20, rtol=None)
    lanczos = partial(eigsh, H, k=10, ncv=20, max_restarts=0, on_failure="return")  # one full basis
    runs: dict[str, tuple[float, Callable[[], Any]]] = {
        "CG": (0.05, lambda: solve(v, solver=ihvp.CG(rtol=1e-4)).x),
        "LiSSA": (0.05, lambda: solve(v, solver=lissa).x),
        "block CG of 8": (0.12, lambda: solve(V, solver=ihvp.CG(rtol=1e-3)).x),
        "Lanczos, 10 pairs": (0.2, lambda: lanczos().vectors),
    }
    rows = []
    for name, (bar, run) in runs.items():
        best = min((watch.of(run) for _ in range(2)), key=lambda spent: spent[0] / spent[1])
        outside, total, products = best
        rows.append(
            Row(
                what=f"time outside products, {name}, {problem.name}",
                ours=f"{seconds(outside)} of {seconds(total)}",
                peer="the whole solve",
                beside=f"{products} products of {seconds((total - outside) / products)}",
                value=outside / total,
                low=-1.0,  # a product alone may by accident take longer than in the solve
                high=bar,
            )
        )
    return rows


class _Stopwatch:
    """Counts what a backend's products take, each waited for.

    A product that is compiled with other work cannot be timed inside: it counts as much as the product alone
    takes, afterwards.
    """

    def __init__(self, backend: Any) -> None:
        self.seconds, self.products = 0.0, 0
        # By shapes of vectors, the last product alone and how many there were.
        self._fused: dict[tuple[int, ...], tuple[Callable[[], Any], int]] = {}
        backend.hvp = self._timed(backend.hvp)
        if hasattr(backend, "linearize"):
            linearize = backend.linearize
            backend.linearize = lambda *arguments: _Map(linearize(*arguments), self)

    def of(self, run: Callable[[], Any]) -> tuple[float, float, int]:
        """The seconds of a run outside products, all of them, and the number of products."""
        self.seconds, self.products, self._fused = 0.0, 0, {}
        total = once(run)
        for alone, count in self._fused.values():
            self.seconds += count * float(np.median([once(alone) for _ in range(9)]))
            self.products += count
        return total - self.seconds, total, self.products

    def fused(self, shape: tuple[int, ...], alone: Callable[[], Any]) -> None:
        """One product more with vectors of a shape, of which this is the product alone."""
        self._fused[shape] = alone, self._fused.get(shape, (alone, 0))[1] + 1

    def _timed(self, product: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = finish(product(*arguments))
            self.seconds += time.perf_counter() - start
            self.products += 1
            return result

        return timed


class _Map:
    """A linearised map whose products are counted."""

    def __init__(self, matvec: Any, watch: _Stopwatch) -> None:
        if hasattr(matvec, "nbytes"):
            self.nbytes = matvec.nbytes
        self._timed = watch._timed(matvec)
        if hasattr(matvec, "then"):

            def then(function: Any, v: Any, *arguments: Any, fixed: Any) -> Any:
                watch.fused(v.shape, lambda: matvec(v))
                return matvec.then(function, v, *arguments, fixed=fixed)

            self.then = then

    def __call__(self, v: Any) -> Any:
        return self._timed(v)


CASE = Case(
    "outside",
    "Time outside products",
    {framework: partial(measure, framework) for framework in ("torch", "jax", "tf")},
)
