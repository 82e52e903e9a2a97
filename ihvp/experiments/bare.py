"""The mode of automatic differentiation that a backend does not take itself, written in its framework alone.

The frameworks are imported by name when asked for: the core imports none.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple


class Bare(NamedTuple):
    """What the backend's own ``hvp`` does, and the other way: ``make(loss, params, batch, v) -> call``."""

    own: str
    other: str
    make: Callable[..., Callable[[], Any]]


def _torch(loss: Any, params: Any, batch: Any, v: Any) -> Callable[[], Any]:
    func: Any = import_module("torch.func")
    return lambda: func.jvp(func.grad(lambda w: loss(w, batch)), (params,), (v,))[1]


def _jax(loss: Any, params: Any, batch: Any, v: Any) -> Callable[[], Any]:
    jax: Any = import_module("jax")

    def product(w: Any, batch: Any, v: Any) -> Any:
        return jax.vjp(lambda w: jax.grad(loss)(w, batch), w)[1](v)[0]

    compiled = jax.jit(product)
    return lambda: jax.block_until_ready(compiled(params, batch, v))


def _tf(loss: Any, params: Any, batch: Any, v: Any) -> Callable[[], Any]:
    tf: Any = import_module("tensorflow")

    def product(batch: Any, v: Any) -> Any:
        with tf.autodiff.ForwardAccumulator(list(params.values()), list(v.values())) as accumulator:
            with tf.GradientTape() as tape:
                value = loss(params, batch)
            gradient = tape.gradient(value, params)
        return {name: accumulator.jvp(part) for name, part in gradient.items()}

    compiled = tf.function(product)
    return lambda: compiled(batch, v)


_FORWARD, _REVERSE = "forward over reverse", "reverse over reverse"

BARE = {
    "torch": Bare(_REVERSE, _FORWARD, _torch),
    "jax": Bare(_FORWARD, _REVERSE, _jax),
    "tf": Bare(_REVERSE, _FORWARD, _tf),
}
