"""What the JAX backend says of itself; JAX is imported only by the factory and the dialect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ihvp.backend import BackendPlugin, Dialect, Params
from ihvp.hookspecs import hookimpl

if TYPE_CHECKING:
    from ihvp_jax._backend import JaxBackend


def _factory(params: Params = None, **options: Any) -> JaxBackend:
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
        capabilities=frozenset(
            {
                "linearize",
                "uniform_batches",
                "per_example_grads",
                "gauss_newton",
                "value",
                "example_products",
                "input_derivatives",
                "layers",
                "blocks",
                "checkpoints",
                "push_forward",
            }
        ),
        dialect=_dialect,
        environment={"JAX_ENABLE_X64": "1"},
    )
