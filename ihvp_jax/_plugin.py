"""What the JAX backend says of itself; JAX is imported only by the factory and the dialect."""

from __future__ import annotations

from typing import Any

from ihvp.backend import CAPABILITIES, BackendPlugin, CurvatureBackend, Dialect, Params
from ihvp.hookspecs import hookimpl


def _factory(params: Params = None, **options: Any) -> CurvatureBackend:
    from ihvp_jax._backend import JaxBackend

    return JaxBackend(params, **options)


def _dialect() -> Dialect:
    import jax.numpy as jnp

    # `array` copies where `asarray` may share numpy's memory, which its owner can write to.
    return Dialect(
        xp=jnp, parameters=lambda arrays: {name: jnp.array(array) for name, array in arrays.items()}
    )


@hookimpl
def ihvp_backend() -> BackendPlugin:
    """The record of the JAX backend."""
    return BackendPlugin(
        name="jax",
        framework="jax",
        install="pip install 'ihvp[jax]'",
        factory=_factory,
        types=("jax", "jaxlib", "flax"),
        capabilities=frozenset(CAPABILITIES) - {"reduce", "product_error", "linearize_gauss_newton"},
        dialect=_dialect,
        environment={"JAX_ENABLE_X64": "1"},
    )
