"""Random TensorFlow networks: a right second derivative is never called wrong, and a wrong one is.

``IHVP_ZOO=60`` in the environment tries so many networks in the place of a few.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ihvp.space import VectorSpace
from ihvp.verification.second_derivative import Comparison, compare_with_gradients
from ihvp_tf._backend import TensorFlowBackend

Network = Callable[[Any, Any], Any]


def compare(loss: Network, params: Any, batch: Any) -> Comparison:
    backend = TensorFlowBackend(params)
    return compare_with_gradients(
        backend, loss, params, batch, VectorSpace.of(backend.flatten(params), backend, params)
    )


def cross_entropy(outputs: Any, y: Any) -> Any:
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, outputs))


def one_hot(y: Any, like: Any) -> Any:
    return tf.one_hot(y, 5, dtype=like.dtype)


def squared(outputs: Any, y: Any) -> Any:
    return tf.reduce_mean((outputs - one_hot(y, outputs)) ** 2)


def absolute(outputs: Any, y: Any) -> Any:
    return tf.reduce_mean(tf.abs(outputs - one_hot(y, outputs)))


def hinge(outputs: Any, y: Any) -> Any:
    own = tf.reduce_sum(outputs * one_hot(y, outputs), 1, keepdims=True)
    return tf.reduce_mean(tf.nn.relu(1 - own + outputs))


def normalised(z: Any, axis: int = -1) -> Any:
    # By hand: tf.nn.moments stops a gradient.
    z = z - tf.reduce_mean(z, axis, keepdims=True)
    return z / tf.sqrt(tf.reduce_mean(z * z, axis, keepdims=True) + 1e-4)


class Zoo:
    """Networks of one seed; each is a function of its variables and of 64 inputs, with 5 outputs."""

    def __init__(self, seed: int) -> None:
        self.pick = np.random.default_rng(seed)

    def weights(self, *shape: int) -> np.ndarray:
        return self.pick.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[:-1])))

    def dense(self) -> tuple[list[np.ndarray], Network]:
        activations = [tf.nn.relu, tf.nn.leaky_relu, tf.nn.gelu, tf.tanh, tf.nn.elu, tf.nn.softplus]
        activation = activations[self.pick.integers(len(activations))]
        norm = [lambda z: z, normalised, lambda z: normalised(z, 0)][self.pick.integers(3)]
        widths = [64, *map(int, self.pick.integers(3, 60, size=self.pick.integers(1, 4))), 5]
        params = []
        for before, after in pairwise(widths):
            params += [
                self.weights(before, after),
                np.zeros(after) if self.pick.random() < 0.5 else self.weights(after),
            ]

        def network(w: Any, x: Any) -> Any:
            for i in range(0, len(w) - 2, 2):
                x = activation(norm(x @ w[i] + w[i + 1]))
            return x @ w[-2] + w[-1]

        return params, network

    def pooled(self) -> tuple[list[np.ndarray], Network]:
        channels = int(self.pick.integers(2, 6))

        def network(w: Any, x: Any) -> Any:
            z = tf.nn.relu(tf.nn.conv2d(tf.reshape(x, (-1, 8, 8, 1)), w[0], 1, "VALID") + w[1])
            z = tf.nn.max_pool2d(z, 2, 2, "VALID")
            return tf.reshape(z, (tf.shape(x)[0], 9 * channels)) @ w[2]

        return [self.weights(3, 3, 1, channels), np.zeros(channels), self.weights(9 * channels, 5)], network

    def recurrent(self) -> tuple[list[np.ndarray], Network]:
        width = int(self.pick.integers(3, 10))

        def network(w: Any, x: Any) -> Any:
            h = c = tf.zeros_like(x[:, :1] @ tf.zeros((1, width), x.dtype))
            for part in range(0, 64, 16):
                i, f, g, o = tf.split(tf.concat([x[:, part : part + 16], h], 1) @ w[0] + w[1], 4, axis=1)
                c = tf.sigmoid(f + 1) * c + tf.sigmoid(i) * tf.tanh(g)
                h = tf.sigmoid(o) * tf.tanh(c)
            return h @ w[2]

        return [self.weights(16 + width, 4 * width), np.zeros(4 * width), self.weights(width, 5)], network

    def attention(self) -> tuple[list[np.ndarray], Network]:
        activation = [tf.nn.relu, tf.nn.gelu][self.pick.integers(2)]

        def network(w: Any, x: Any) -> Any:
            x = tf.reshape(x, (-1, 8, 8))
            q, k, v = tf.split(normalised(x) @ w[0], 3, axis=-1)
            x = x + tf.nn.softmax(tf.matmul(q, k, transpose_b=True) / 8**0.5) @ v
            x = x + activation(normalised(x) @ w[1]) @ w[2]
            return tf.reduce_mean(normalised(x), 1) @ w[3]

        return [self.weights(8, 24), self.weights(8, 16), self.weights(16, 8), self.weights(8, 5)], network

    def words(self) -> tuple[list[np.ndarray], Network]:
        def network(w: Any, x: Any) -> Any:
            numbers = tf.clip_by_value(tf.cast(tf.abs(x) * 5, tf.int32), 0, 10)
            return normalised(tf.reduce_max(tf.gather(w[0], numbers), 1)) @ w[1]

        return [3 * self.weights(11, 6), self.weights(6, 5)], network


def network(seed: int) -> tuple[str, str, Network, Any, tuple[Any, Any]]:
    """A dtype, a description, and a loss with its variables and batch."""
    zoo = Zoo(seed)
    pick = zoo.pick
    kind = ["dense", "dense", "pooled", "recurrent", "attention", "words"][seed % 6]
    dtype = ["float64", "float32", "float64", "float32", "float16"][pick.integers(5)]
    values, forward = getattr(zoo, kind)()
    error = [cross_entropy, cross_entropy, squared, hinge, absolute][pick.integers(5)]
    rows = int(pick.choice([2, 17, 100]))
    x, y = pick.standard_normal((rows, 64)), tf.constant(pick.integers(0, 5, rows))
    x[0] *= pick.random() > 0.2
    x = tf.cast(x, dtype)
    variables = [tf.Variable(tf.cast(value, dtype)) for value in values]

    def loss(w: Any, batch: tuple[Any, Any]) -> Any:
        return error(forward(w, batch[0]), batch[1])

    steps = int(pick.choice([0, 0, 20, 200]))
    if steps:
        train = tf.function(lambda: _descend(loss, variables, (x, y)))
        for _ in range(steps):
            train()
    return dtype, f"{kind} {error.__name__} rows={rows} steps={steps}", loss, variables, (x, y)


def _descend(loss: Network, variables: list[Any], batch: Any) -> None:
    with tf.GradientTape() as tape:
        value = loss(variables, batch)
    for variable, slope in zip(variables, tape.gradient(value, variables), strict=True):
        variable.assign_sub(0.1 * tf.convert_to_tensor(slope))


@pytest.mark.parametrize("seed", range(int(os.environ.get("IHVP_ZOO", "7"))))
def test_a_right_second_derivative_is_never_called_wrong(seed):
    _, what, loss, variables, batch = network(seed)
    comparison = compare(loss, variables, batch)
    assert comparison.outcome != "wrong", (what, comparison)


@pytest.mark.parametrize("training", [False, True])
def test_a_model_with_batch_normalisation_passes(training):
    layers = [keras.layers.Dense(6, dtype="float64"), keras.layers.BatchNormalization(dtype="float64")]
    model = keras.Sequential(
        [
            keras.Input((8,), dtype="float64"),
            *layers,
            keras.layers.ReLU(dtype="float64"),
            keras.layers.Dense(5, dtype="float64"),
        ]
    )
    random = np.random.default_rng(0)
    batch = random.standard_normal((50, 8)), random.integers(0, 5, 50)
    comparison = compare(lambda m, b: squared(m(b[0], training=training), b[1]), model, batch)
    assert comparison.outcome in (("passed", "wrong") if training else ("passed",))


def survey(count: int) -> Counter[tuple[str, str]]:
    """How many networks of each dtype came to each outcome."""
    found: Counter[tuple[str, str]] = Counter()
    for seed in range(count):
        dtype, what, loss, variables, batch = network(seed)
        comparison = compare(loss, variables, batch)
        found[dtype, comparison.outcome] += 1
        if comparison.outcome != "passed" and dtype != "float16":
            print(seed, dtype, what, comparison)
    return found


# Second derivatives that are wrong


def scaled(factor):
    """The identity, whose second derivative is multiplied by a factor."""

    @tf.custom_gradient
    def slope(g):
        return tf.identity(g), lambda outer: factor * outer

    @tf.custom_gradient
    def layer(p):
        return tf.identity(p), lambda g: slope(g)

    return layer


@tf.custom_gradient
def tanh_that_saved_its_slope(z):
    value = tf.tanh(z)
    slope = tf.stop_gradient(1 - value * value)
    return value, lambda g: g * slope


def softplus_with_a_constant_slope(z):
    slope = tf.stop_gradient(tf.sigmoid(z))
    return tf.stop_gradient(tf.nn.softplus(z) - slope * z) + slope * z


@tf.custom_gradient
def cross_entropy_that_saved_its_probabilities(outputs, y):
    difference = tf.stop_gradient(
        (tf.nn.softmax(outputs) - one_hot(y, outputs)) / tf.cast(tf.shape(y)[0], outputs.dtype)
    )
    return cross_entropy(outputs, y), lambda g: (g * difference, None)


def normalised_as_by_moments(z):
    # Where the first gradient of the mean vanishes, tf.nn.moments does not differentiate it.
    mean = tf.reduce_mean(z, -1, keepdims=True)
    variance = tf.reduce_mean((z - tf.stop_gradient(mean)) ** 2, -1, keepdims=True)
    return (z - mean) / tf.sqrt(variance + 1e-4)


def in_layer(number, other, activation=tf.tanh):
    def network(w, x):
        for i in range(len(w) // 2):
            z = x @ w[2 * i] + w[2 * i + 1]
            x = z if 2 * i + 2 == len(w) else (other if i == number else activation)(z)
        return x

    return network


def of_weight(number, layer):
    return lambda w, x: in_layer(-1, None)([layer(p) if i == number else p for i, p in enumerate(w)], x)


WRONG = {
    "a softplus whose slope is a constant": lambda w, b: cross_entropy(
        in_layer(1, softplus_with_a_constant_slope)(w, b[0]), b[1]
    ),
    "one tanh of three": lambda w, b: squared(in_layer(2, tanh_that_saved_its_slope)(w, b[0]), b[1]),
    "a cross-entropy that saved its probabilities": lambda w, b: cross_entropy_that_saved_its_probabilities(
        in_layer(-1, None)(w, b[0]), b[1]
    ),
    "one normalisation with a stopped gradient": lambda w, b: cross_entropy(
        in_layer(1, normalised_as_by_moments)(w, b[0]), b[1]
    ),
    "a ReLU network's normalisation": lambda w, b: cross_entropy(
        in_layer(1, normalised_as_by_moments, tf.nn.relu)(w, b[0]), b[1]
    ),
    "a weight times 0.9": lambda w, b: cross_entropy(of_weight(2, scaled(0.9))(w, b[0]), b[1]),
    "a weight of the other sign": lambda w, b: squared(of_weight(0, scaled(-1.0))(w, b[0]), b[1]),
    "a penalty without curvature": lambda w, b: (
        squared(in_layer(-1, None)(w, b[0]), b[1]) + 0.1 * tf.reduce_sum(tf.stop_gradient(w[2]) * w[2])
    ),
}


def problem(dtype):
    random = np.random.default_rng(8)
    widths = (8, 7, 6, 6, 5)
    w = []
    for m, n in pairwise(widths):
        w += [
            tf.Variable(tf.cast(random.standard_normal((m, n)) / m**0.5, dtype)),
            tf.Variable(tf.cast(0.1 * random.standard_normal(n), dtype)),
        ]
    return w, (random.standard_normal((50, 8)).astype(dtype), random.integers(0, 5, 50))


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_second_derivative_is_found(what):
    comparison = compare(WRONG[what], *problem("float64"))
    assert comparison.outcome == "wrong", comparison


def test_a_wrong_second_derivative_is_found_in_float32():
    loss = WRONG["a cross-entropy that saved its probabilities"]
    assert compare(loss, *problem("float32")).outcome == "wrong"
