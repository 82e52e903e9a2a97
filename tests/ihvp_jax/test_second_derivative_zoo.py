"""Random JAX networks: a right second derivative is never called wrong, and a wrong one is.

``IHVP_ZOO=60`` in the environment tries so many networks in the place of a few.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ihvp.space import VectorSpace
from ihvp.verification.second_derivative import Comparison, compare_with_gradients
from ihvp_jax._backend import JaxBackend

Loss = Callable[[Any, tuple[Any, Any]], Any]


def compare(loss: Loss, params: Any, batch: Any) -> Comparison:
    backend = JaxBackend(params)
    return compare_with_gradients(
        backend, loss, params, batch, VectorSpace.of(backend.flatten(params), backend, params)
    )


def cross_entropy(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), y[:, None], axis=1).mean()


def squared(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return ((outputs - jax.nn.one_hot(y, 5, dtype=outputs.dtype)) ** 2).mean()


def absolute(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.abs(outputs - jax.nn.one_hot(y, 5, dtype=outputs.dtype)).mean()


def hinge(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return jax.nn.relu(1 - jnp.take_along_axis(outputs, y[:, None], axis=1) + outputs).mean()


def normalised(z: jax.Array) -> jax.Array:
    return (z - z.mean(-1, keepdims=True)) / jnp.sqrt(z.var(-1, keepdims=True) + 1e-5)


def over_the_batch(z: jax.Array) -> jax.Array:
    return (z - z.mean(0)) / jnp.sqrt(z.var(0) + 1e-5)


class Zoo:
    """Networks of one seed; each is a function of its parameters and of 64 inputs, with 5 outputs."""

    def __init__(self, seed: int) -> None:
        self.pick = np.random.default_rng(seed)

    def weights(self, *shape: int) -> np.ndarray:
        return self.pick.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[:-1])))

    def dense(self) -> tuple[Any, Callable[[Any, jax.Array], jax.Array]]:
        activations = [
            jax.nn.relu,
            jax.nn.leaky_relu,
            jax.nn.gelu,
            jnp.tanh,
            jax.nn.elu,
            jax.nn.hard_tanh,
            jax.nn.silu,
        ]
        activation = activations[self.pick.integers(len(activations))]
        norm = [lambda z: z, normalised, over_the_batch][self.pick.integers(3)]
        widths = [64, *map(int, self.pick.integers(3, 60, size=self.pick.integers(1, 4))), 5]
        params = [
            {
                "W": self.weights(before, after),
                "b": np.zeros(after) if self.pick.random() < 0.5 else self.weights(after),
            }
            for before, after in pairwise(widths)
        ]

        def network(params: Any, x: jax.Array) -> jax.Array:
            for layer in params[:-1]:
                x = activation(norm(x @ layer["W"] + layer["b"]))
            return x @ params[-1]["W"] + params[-1]["b"]

        return params, network

    def pooled(self) -> tuple[Any, Callable[[Any, jax.Array], jax.Array]]:
        channels = int(self.pick.integers(2, 6))
        params = {
            "filter": self.weights(channels, 1, 3, 3),
            "b": np.zeros((channels, 1, 1)),
            "W": self.weights(9 * channels, 5),
        }

        def network(params: Any, x: jax.Array) -> jax.Array:
            z = jax.lax.conv(x.reshape(-1, 1, 8, 8), params["filter"], (1, 1), "VALID") + params["b"]
            z = jax.nn.relu(z).reshape(-1, z.shape[1], 3, 2, 3, 2).max((3, 5))
            return z.reshape(len(x), -1) @ params["W"]

        return params, network

    def recurrent(self) -> tuple[Any, Callable[[Any, jax.Array], jax.Array]]:
        width = int(self.pick.integers(3, 10))
        params = {
            "W": self.weights(8 + width, 4 * width),
            "b": np.zeros(4 * width),
            "out": self.weights(width, 5),
        }

        def network(params: Any, x: jax.Array) -> jax.Array:
            def step(state: Any, part: jax.Array) -> Any:
                h, c = state
                i, f, g, o = jnp.split(jnp.concatenate([part, h], 1) @ params["W"] + params["b"], 4, axis=1)
                c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

            start = jnp.zeros((len(x), width), x.dtype)
            (h, _), _ = jax.lax.scan(step, (start, start), x.reshape(-1, 8, 8).transpose(1, 0, 2))
            return h @ params["out"]

        return params, network

    def attention(self) -> tuple[Any, Callable[[Any, jax.Array], jax.Array]]:
        params = {
            "qkv": self.weights(8, 24),
            "W": self.weights(8, 16),
            "V": self.weights(16, 8),
            "out": self.weights(8, 5),
        }
        activation = [jax.nn.relu, jax.nn.gelu][self.pick.integers(2)]

        def network(params: Any, x: jax.Array) -> jax.Array:
            x = x.reshape(-1, 8, 8)
            q, k, v = jnp.split(normalised(x) @ params["qkv"], 3, axis=-1)
            x = x + jax.nn.softmax(q @ k.transpose(0, 2, 1) / 8**0.5) @ v
            x = x + activation(normalised(x) @ params["W"]) @ params["V"]
            return normalised(x).mean(1) @ params["out"]

        return params, network

    def words(self) -> tuple[Any, Callable[[Any, jax.Array], jax.Array]]:
        params = {"table": self.weights(11, 6) * 3, "out": self.weights(6, 5)}

        def network(params: Any, x: jax.Array) -> jax.Array:
            numbers = jnp.clip((jnp.abs(x) * 5).astype(int), 0, 10)
            return normalised(params["table"][numbers].max(1)) @ params["out"]

        return params, network


def network(seed: int) -> tuple[str, str, Loss, Any, tuple[Any, Any]]:
    """A dtype, a description, and a loss with its parameters and batch."""
    zoo = Zoo(seed)
    pick = zoo.pick
    kind = ["dense", "dense", "pooled", "recurrent", "attention", "words"][seed % 6]
    dtype = ["float64", "float32", "float64", "float32", "bfloat16"][pick.integers(5)]
    params, forward = getattr(zoo, kind)()
    error = [cross_entropy, cross_entropy, squared, hinge, absolute][pick.integers(5)]
    rows = int(pick.choice([2, 17, 100]))
    x, y = jnp.asarray(pick.standard_normal((rows, 64)), dtype), jnp.asarray(pick.integers(0, 5, rows))
    if pick.random() < 0.2:
        x = x.at[0].set(0)
    params = jax.tree.map(lambda value: jnp.asarray(value, dtype), params)

    def loss(params: Any, batch: tuple[Any, Any]) -> Any:
        return error(forward(params, batch[0]), batch[1])

    steps = int(pick.choice([0, 0, 20, 300]))
    if steps:
        train = jax.jit(
            lambda params: jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params, (x, y)))
        )
        for _ in range(steps):
            params = train(params)
    return dtype, f"{kind} {error.__name__} rows={rows} steps={steps}", loss, params, (x, y)


@pytest.mark.parametrize(
    "seed", range(int(os.environ["IHVP_ZOO"])) if "IHVP_ZOO" in os.environ else (1, 4, 5, 6)
)
def test_a_right_second_derivative_is_never_called_wrong(seed):
    _, what, loss, params, batch = network(seed)
    comparison = compare(loss, params, batch)
    assert comparison.outcome != "wrong", (what, comparison)


def survey(count: int) -> Counter[tuple[str, str]]:
    """How many networks of each dtype came to each outcome."""
    found: Counter[tuple[str, str]] = Counter()
    for seed in range(count):
        dtype, what, loss, params, batch = network(seed)
        comparison = compare(loss, params, batch)
        found[dtype, comparison.outcome] += 1
        if comparison.outcome != "passed" and dtype != "bfloat16":
            print(seed, dtype, what, comparison)
    return found


# Second derivatives that are wrong


@jax.custom_jvp
def softplus_with_a_constant_slope(z):
    return jax.nn.softplus(z)


@softplus_with_a_constant_slope.defjvp
def _(primals, tangents):
    (z,), (t,) = primals, tangents
    return jax.nn.softplus(z), jax.lax.stop_gradient(jax.nn.sigmoid(z)) * t


@jax.custom_vjp
def tanh_that_saved_its_slope(z):
    return jnp.tanh(z)


tanh_that_saved_its_slope.defvjp(
    lambda z: (jnp.tanh(z), jax.lax.stop_gradient(1 - jnp.tanh(z) ** 2)), lambda slope, g: (slope * g,)
)


@jax.custom_vjp
def cross_entropy_that_saved_its_probabilities(outputs, y):
    return cross_entropy(outputs, y)


cross_entropy_that_saved_its_probabilities.defvjp(
    lambda outputs, y: (
        cross_entropy(outputs, y),
        jax.lax.stop_gradient((jax.nn.softmax(outputs) - jax.nn.one_hot(y, 5, dtype=outputs.dtype)) / len(y)),
    ),
    lambda saved, g: (saved * g, None),
)


def scaled(factor):
    """The identity, whose second derivative is multiplied by a factor."""

    @jax.custom_jvp
    def identity(g):
        return g

    identity.defjvp(lambda primals, tangents: (primals[0], factor * tangents[0]))

    @jax.custom_vjp
    def layer(p):
        return p

    layer.defvjp(lambda p: (p, None), lambda _, g: (identity(g),))
    return layer


def normalised_by_constants(z):
    return (z - z.mean(-1, keepdims=True)) / jax.lax.stop_gradient(jnp.sqrt(z.var(-1, keepdims=True) + 1e-5))


def in_layer(number, other, activation=jnp.tanh):
    def network(w, x):
        for i, (W, b) in enumerate(w):
            z = x @ W + b
            x = z if i == len(w) - 1 else (other if i == number else activation)(z)
        return x

    return network


def of_weight(number, layer):
    return lambda w, x: in_layer(-1, None)(
        [(layer(W), b) if i == number else (W, b) for i, (W, b) in enumerate(w)], x
    )


WRONG = {
    "a softplus whose slope is a constant": lambda w, b: cross_entropy(
        in_layer(1, softplus_with_a_constant_slope)(w, b[0]), b[1]
    ),
    "one tanh of three": lambda w, b: squared(in_layer(2, tanh_that_saved_its_slope)(w, b[0]), b[1]),
    "a cross-entropy that saved its probabilities": lambda w, b: cross_entropy_that_saved_its_probabilities(
        in_layer(-1, None)(w, b[0]), b[1]
    ),
    "a normalisation by constants": lambda w, b: cross_entropy(
        in_layer(1, lambda z: jnp.tanh(normalised_by_constants(z)))(w, b[0]), b[1]
    ),
    "a ReLU network's normalisation": lambda w, b: cross_entropy(
        in_layer(1, normalised_by_constants, jax.nn.relu)(w, b[0]), b[1]
    ),
    "a weight times 0.9": lambda w, b: cross_entropy(of_weight(1, scaled(0.9))(w, b[0]), b[1]),
    "a weight of the other sign": lambda w, b: squared(of_weight(0, scaled(-1.0))(w, b[0]), b[1]),
    "a penalty without curvature": lambda w, b: (
        squared(in_layer(-1, None)(w, b[0]), b[1]) + 0.1 * (jax.lax.stop_gradient(w[1][0]) * w[1][0]).sum()
    ),
}


def problem(dtype):
    random = np.random.default_rng(8)
    widths = (8, 7, 6, 6, 5)
    w = [
        (
            jnp.asarray(random.standard_normal((m, n)) / m**0.5, dtype),
            jnp.asarray(0.1 * random.standard_normal(n), dtype),
        )
        for m, n in pairwise(widths)
    ]
    return w, (jnp.asarray(random.standard_normal((50, 8)), dtype), jnp.asarray(random.integers(0, 5, 50)))


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_second_derivative_is_found(what):
    comparison = compare(WRONG[what], *problem("float64"))
    assert comparison.outcome == "wrong", comparison


def test_a_wrong_second_derivative_is_found_in_float32():
    loss = WRONG["a cross-entropy that saved its probabilities"]
    assert compare(loss, *problem("float32")).outcome == "wrong"
