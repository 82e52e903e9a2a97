"""What the TensorFlow backend says of itself; TensorFlow is imported only by the factory and the dialect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ihvp.backend import BackendPlugin, Dialect, Params
from ihvp.hookspecs import hookimpl

if TYPE_CHECKING:
    from ihvp_tf._backend import TensorFlowBackend


def _factory(params: Params = None, **options: Any) -> TensorFlowBackend:
    from ihvp_tf._backend import TensorFlowBackend

    return TensorFlowBackend(params, **options)


def _dialect() -> Dialect:
    import tensorflow as tf

    return Dialect(
        xp=tf.experimental.numpy,
        parameters=lambda arrays: {name: tf.Variable(array) for name, array in arrays.items()},
    )


@hookimpl
def ihvp_backend() -> BackendPlugin:
    """The record of the TensorFlow backend."""
    return BackendPlugin(
        name="tf",
        framework="tensorflow",
        install="pip install 'ihvp[tf]'",
        factory=_factory,
        types=("tensorflow", "keras"),
        capabilities=frozenset(
            {
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
    )
