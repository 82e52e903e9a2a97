"""What the TensorFlow backend says of itself; TensorFlow is imported only by the factory and the dialect."""

from __future__ import annotations

from typing import Any

from ihvp.backend import CAPABILITIES, BackendPlugin, CurvatureBackend, Dialect, Params
from ihvp.hookspecs import hookimpl


def _factory(params: Params = None, **options: Any) -> CurvatureBackend:
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
        capabilities=frozenset(CAPABILITIES)
        - {"linearize", "reduce", "product_error", "batch_products", "linearize_gauss_newton"},
        dialect=_dialect,
    )
