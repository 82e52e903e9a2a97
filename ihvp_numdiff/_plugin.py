"""The record of the backend "numdiff"; needs nothing but numpy."""

from __future__ import annotations

from typing import Any

from ihvp.backend import BackendPlugin, CurvatureBackend, Dialect
from ihvp.hookspecs import hookimpl


def _factory(
    params: Any = None, *, inner: CurvatureBackend | None = None, step: float | None = None, order: int = 2
) -> CurvatureBackend:
    # `params` is not needed: their device is that of `inner`, or the CPU.
    from ihvp_numdiff._backend import NumdiffBackend

    return NumdiffBackend(inner, step=step, order=order)


def _dialect() -> Dialect:
    import numpy as np

    return Dialect(xp=np, parameters=lambda arrays: {name: np.array(array) for name, array in arrays.items()})


@hookimpl
def ihvp_backend() -> BackendPlugin:
    """Finite differences of a gradient, over numpy or over another backend."""
    return BackendPlugin(
        name="numdiff",
        framework="numpy",
        install="pip install 'ihvp[numdiff]'",
        factory=_factory,
        types=("numpy", "ihvp_numdiff"),
        capabilities=frozenset({"product_error", "value", "blocks", "reduce"}),
        differentiates="gradient",
        dialect=_dialect,
    )
