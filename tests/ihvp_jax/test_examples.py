"""Values, products with single gradients, and derivatives by the data."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose


class Counted:
    def __init__(self):
        self.traces = 0

    def __call__(self, params, batch):
        self.traces += 1
        return jnp.mean(jnp.tanh(batch[0] @ params["w"]) ** 2)


@pytest.fixture
def params():
    return {"w": jnp.linspace(-1.0, 1.0, 3)}


@pytest.fixture
def batch():
    return (np.random.default_rng(0).normal(size=(5, 3)),)


CALLS = {
    "value": lambda backend, loss, params, batch: backend.value(loss, params, batch),
    "example_products": lambda backend, *args: backend.example_products(*args, jnp.ones((3, 20))),
    "input_derivatives": lambda backend, *args: backend.input_derivatives(*args, jnp.ones((3, 2))),
}


@pytest.mark.parametrize("name", CALLS)
def test_repeated_calls_trace_nothing_again(backend, params, batch, name):
    loss = Counted()
    CALLS[name](backend, loss, params, batch)
    first = loss.traces
    for scale in (2.0, 3.0):
        CALLS[name](backend, loss, {"w": scale * params["w"]}, (scale * batch[0],))
    assert loss.traces == first


@jax.custom_vjp
def cubed(x):
    return x**3


cubed.defvjp(lambda x: (x**3, x), lambda x, cotangent: (3 * x**2 * cotangent,))


@pytest.mark.parametrize("columns", [(), (1,), (20,)])
def test_a_function_without_a_forward_derivative_has_products(backend, params, batch, columns):
    def loss(params, batch):
        return jnp.mean(cubed(batch[0] @ params["w"]))

    v = jnp.asarray(np.random.default_rng(1).normal(size=(3, *columns)))
    rows = backend.per_example_grads(loss, params, batch)
    assert_allclose(backend.example_products(loss, params, batch, v), rows @ v, rtol=1e-12)


def test_an_array_without_dimensions_belongs_to_every_example(backend, params, batch):
    def loss(params, batch):
        return jnp.mean(batch["x"] @ params["w"]) * batch["scale"]

    data = {"x": batch[0], "scale": np.asarray(3.0), "name": "train"}
    products = backend.example_products(loss, params, data, jnp.ones(3))
    assert_allclose(products, 3 * batch[0].sum(axis=1), rtol=1e-14)
    found = backend.input_derivatives(loss, params, data, jnp.ones(3))
    assert found["scale"] is None
    assert found["name"] is None
    assert_allclose(found["x"], np.full((5, 3), 3 / 5), rtol=1e-14)


def test_a_batch_of_nothing_is_one_example(backend, params):
    products = backend.example_products(lambda params, batch: params["w"][0] ** 2, params, None, jnp.ones(3))
    assert_allclose(products, [-2.0])


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_error_of_the_loss_passes_unchanged(backend, params, batch, call):
    mine = ValueError("mine")

    def loss(params, batch):
        raise mine

    with pytest.raises(ValueError, match="mine") as caught:
        call(backend, loss, params, batch)
    assert caught.value is mine


class Tensor:
    """An array of another library, such as a DataLoader gives."""

    def __init__(self, values):
        self._values = values

    def __array__(self, dtype=None, copy=None):
        return self._values


def test_arrays_of_other_libraries_are_evaluated(backend, params, batch):
    loss = Counted()
    expected = float(backend.value(loss, params, batch))
    assert float(backend.value(loss, params, (Tensor(batch[0]),))) == expected


def test_a_loss_is_differentiated_by_the_data_through_a_partial_function(backend, params, batch):
    def loss(power, params, batch):
        return jnp.mean((batch[0] @ params["w"]) ** power)

    v = np.array([1.0, -2.0, 0.5])
    (found,) = backend.input_derivatives(functools.partial(loss, 2), params, batch, jnp.asarray(v))
    x, w = batch[0], np.asarray(params["w"])
    assert_allclose(found, 2 / 5 * (np.outer(x @ v, w) + np.outer(x @ w, v)), rtol=1e-12)
