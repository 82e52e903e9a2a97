"""Arguments of the wrong kind, with JAX: each is named, or means something after all."""

from __future__ import annotations

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ihvp
from ihvp import errors

from . import calls


def _donated(*shape):
    array = jnp.ones(shape or 3)
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


@functools.cache
def made():
    return calls.of_losses(jnp.asarray)


@pytest.mark.parametrize("seed", range(2))
def test_every_wrong_argument_is_named(seed):
    with jax.enable_x64(True):
        found = calls.outcomes(made(), 40, seed, VALUES)
    assert not found.unnamed, "\n".join(found.unnamed)
    assert found.counts["named"] > 20


@jax.custom_jvp
def host_tanh(t):
    return jax.pure_callback(lambda t: np.tanh(np.asarray(t)), jax.ShapeDtypeStruct(t.shape, t.dtype), t)


@host_tanh.defjvp
def _(primals, tangents):
    value = host_tanh(*primals)
    return value, (1 - value**2) * tangents[0]


def objective_of(activation):
    def own(w, batch):
        return jnp.mean((activation(batch[0] @ w) - batch[1]) ** 2)

    return ihvp.Objective(own, jnp.asarray(calls.W), (jnp.asarray(calls.X), jnp.asarray(calls.Y)))


def test_a_callback_without_a_rule_for_many_rows_is_called_row_by_row():
    with jax.enable_x64(True):
        by_host, plain = objective_of(host_tanh), objective_of(jnp.tanh)
        block = jnp.asarray(calls.X[:4].T)
        for ask in (
            lambda o: o.per_example_gradients(),
            lambda o: ihvp.Hessian(o) @ block,
            lambda o: np.asarray(ihvp.Influence(o, damping=5.0).scores(o.batches.data)),
        ):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ihvp.influence.NotAtOptimum)
                np.testing.assert_allclose(ask(by_host), ask(plain), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("own", "text"),
    [
        (_loop, "while_loop"),
        (_callback, "Pure callbacks do not support JVP"),
        (lambda params, batch: 1.0 if params["w"].sum() > 0 else 0.0, "boolean conversion of traced"),
    ],
    ids=["loop", "callback", "branch"],
)
def test_what_jax_raises_in_a_loss_keeps_its_text(own, text):
    objective = ihvp.Objective(own, {"w": jnp.ones(3)}, (jnp.ones((4, 3)), jnp.ones(4)))
    for ask in (objective.gradient, lambda: ihvp.Hessian(objective) @ jnp.ones(3)):
        with pytest.raises(errors.LossFailed, match=f"The gradient failed with .*{text}") as caught:
            ask()
        assert text in str(caught.value.__cause__)


def test_arrays_that_were_given_up_are_named():
    objective = objective_of(jnp.tanh)
    with pytest.raises(errors.VectorError, match="donated"):
        ihvp.Hessian(objective) @ _donated()
    with pytest.raises(errors.ParameterError, match="has been deleted"):
        ihvp.Objective(calls.loss, {"w": _donated()}, (jnp.ones((4, 3)), jnp.ones(4)))
    with pytest.raises(errors.LossFailed, match="has been deleted"):
        ihvp.Objective(calls.loss, {"w": jnp.ones(1)}, (_donated(4, 1), jnp.ones(4))).gradient()
