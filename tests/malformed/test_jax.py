"""Arguments of the wrong kind, with JAX: each is named, or means something after all."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

from . import calls

jax.config.update("jax_enable_x64", True)


def _donated():
    array = jnp.ones(3)
    array.delete()
    return array


VALUES = {
    "array of another dtype": lambda: jnp.ones(3, dtype=jnp.float16),
    "integer array of jax": lambda: jnp.arange(3),
    "complex array of jax": lambda: jnp.ones(3, dtype=jnp.complex64),
    "0-d array of jax": lambda: jnp.asarray(0.5),
    "empty array of jax": lambda: jnp.zeros(0),
    "wrong length of jax": lambda: jnp.ones(5),
    "donated array": _donated,
    "key": lambda: jax.random.key(0),
    "old key": lambda: jax.random.PRNGKey(0),
    "shape and dtype": lambda: jax.ShapeDtypeStruct((3,), jnp.float32),
    "batch of Python numbers": lambda: ([[1.0, 2.0, 3.0]], [1.0]),
    "one example without a batch": lambda: (jnp.ones(3), jnp.asarray(1.0)),
    "loss of outputs": lambda: lambda outputs, y: jnp.mean((outputs - y) ** 2),
    "while loop": lambda: _loop,
    "callback": lambda: _callback,
    "jitted function": lambda: jax.jit(lambda x: x),
    "dtype": lambda: jnp.float32,
    "device": lambda: jax.devices()[0],
}


def _loop(params, batch):
    start = jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)
    return jax.lax.while_loop(lambda t: t > 1.0, lambda t: t / 2, start)


def _callback(params, batch):
    w = params["w"]
    return jax.pure_callback(lambda w: w.sum(), jax.ShapeDtypeStruct((), w.dtype), w)


def loss(params, batch):
    x, y = batch
    return ((x @ params["w"] - y) ** 2).mean() / 2


def predict(params, batch):
    return batch[0] @ params["w"]


def output_loss(outputs, batch):
    return ((outputs - batch[1]) ** 2).mean() / 2


@functools.cache
def made():
    problem = calls.Problem(
        {"loss": loss},
        {"w": jnp.asarray(calls.W)},
        (jnp.asarray(calls.X), jnp.asarray(calls.Y)),
        predict,
        output_loss,
    )
    return [*calls.of_objectives(problem), *calls.removals(problem, loss)]


@pytest.mark.parametrize("seed", range(2))
def test_every_wrong_argument_is_named(seed):
    found = calls.outcomes(made(), 40, seed, VALUES)
    assert not found.unnamed, "\n".join(found.unnamed)
    assert found.counts["named"] > 20
