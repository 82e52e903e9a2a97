"""Second derivatives through ``tf.nn.moments``, and the layers of Keras that rest on it."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import op_def_library

from ihvp.errors import UnsupportedOperation
from ihvp_tf._moments import differentiable_moments, has_stopped_mean

WIDTH = 6
# The differences themselves are right to about 1e-10.
RTOL = 1e-7


def layers(*made):
    keras.utils.set_random_seed(0)
    first = keras.layers.Dense(WIDTH, activation="tanh", dtype="float64")
    last = [keras.layers.Flatten(dtype="float64"), keras.layers.Dense(1, dtype="float64")]
    return keras.Sequential([keras.Input((3,), dtype="float64"), first, *made, *last])


MODELS = {
    "layer": lambda: layers(keras.layers.LayerNormalization(dtype="float64")),
    "group": lambda: layers(keras.layers.GroupNormalization(2, dtype="float64")),
    "batch": lambda: layers(keras.layers.BatchNormalization(dtype="float64")),
    "convolution": lambda: layers(
        keras.layers.Reshape((WIDTH, 1), dtype="float64"),
        keras.layers.Conv1D(2, 3, activation="tanh", dtype="float64"),
        keras.layers.LayerNormalization(dtype="float64"),
    ),
    "compiled convolution": lambda: layers(
        keras.layers.Reshape((3, 2), dtype="float64"),
        keras.layers.Conv1D(4, 2, groups=2, activation="tanh", dtype="float64"),
        keras.layers.LayerNormalization(dtype="float64"),
    ),
}


def loss(model, batch):
    return tf.reduce_mean((tf.tanh(model(batch[0], training=True)[:, 0]) - batch[1]) ** 2)


traced_loss = tf.function(loss)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return tf.constant(rng.standard_normal((7, 3))), tf.constant(rng.standard_normal(7))


def gradient(loss, model, batch):
    """By one tape, which is right, with the state of the layers as it was."""
    variables, state = model.trainable_variables, [v.numpy() for v in model.variables]
    with tf.GradientTape() as tape:
        value = loss(model, batch)
    parts = tape.gradient(value, variables)
    for variable, before in zip(model.variables, state, strict=True):
        variable.assign(before)
    return np.concatenate([part.numpy().ravel() for part in parts])


def product(loss, model, batch, v, step=1e-4):
    """The Hessian times the columns of ``v``, by differences of the gradient along them."""
    variables = model.trainable_variables
    values = [variable.numpy() for variable in variables]
    ends = np.cumsum([value.size for value in values])
    point = np.concatenate([value.ravel() for value in values])

    def at(w):
        for variable, part in zip(variables, np.split(w, ends[:-1]), strict=True):
            variable.assign(part.reshape(variable.shape))
        return gradient(loss, model, batch)

    columns = [
        (
            8 * (at(point + step * e) - at(point - step * e))
            - at(point + 2 * step * e)
            + at(point - 2 * step * e)
        )
        for e in v.T
    ]
    at(point)
    return np.stack(columns, 1) / (12 * step)


def directions(model, count=2):
    size = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    return np.random.default_rng(1).standard_normal((size, count))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=RTOL * np.abs(expected).max())


@pytest.mark.parametrize("name", MODELS)
def test_products_are_differences_of_the_gradient(backend, batch, name):
    model = MODELS[name]()
    v = directions(model)
    # The user's own trace, and its gradient, are there before ours.
    expected = product(traced_loss, model, batch, v)
    state = [variable.numpy() for variable in model.variables]
    close(backend.hvp(loss, model, batch, v[:, 0]), expected[:, 0])
    close(backend.hvp(traced_loss, model, batch, v), expected)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(state, model.variables, strict=True))


def test_sums_over_pieces_are_differences_of_the_gradient(backend, batch):
    model = MODELS["layer"]()
    pieces = [tuple(array[i : i + 2] for array in batch) for i in (0, 2, 4)]
    v = directions(model, 1)
    expected = sum(product(traced_loss, model, piece, v) for piece in pieces)
    close(backend.hvp_sum(loss, model, batch, v[:, 0], 2), expected[:, 0])


@pytest.mark.parametrize("name", ["layer", "group", "convolution"])
def test_rows_and_their_products_are_gradients_of_single_examples(backend, batch, name):
    model = MODELS[name]()
    rows = np.stack(
        [
            gradient(traced_loss, model, tuple(array[i : i + 1] for array in batch))
            for i in range(len(batch[1]))
        ]
    )
    v = directions(model, 1)[:, 0]
    close(backend.per_example_grads(loss, model, batch), rows)
    close(backend.example_products(loss, model, batch, v), rows @ v)


def test_gauss_newton_products_are_those_of_the_jacobian(backend, batch):
    model = MODELS["layer"]()
    predict = lambda m, b: m(b[0])[:, 0]  # noqa: E731
    jacobian = np.stack(
        [gradient(lambda m, b, i=i: predict(m, b)[i], model, batch) for i in range(len(batch[1]))]
    )
    # The loss normalises the outputs, so that it has moments too.
    outputs = tf.Variable(predict(model, batch))

    def error(values, data):
        mean, variance = tf.nn.moments(values, [0])
        return tf.reduce_sum(tf.tanh((values - mean) / tf.sqrt(variance + 0.1)) * data[1])

    model_of_outputs = SimpleNamespace(variables=[outputs], trainable_variables=[outputs])
    v = directions(model, 1)
    curved = product(
        lambda _, data: error(tf.convert_to_tensor(outputs), data), model_of_outputs, batch, jacobian @ v
    )
    close(backend.gnvp(predict, error, model, batch, v), jacobian.T @ curved)


def test_derivatives_by_inputs_are_differences_of_the_gradient(backend, batch):
    model, (x, y), step = MODELS["layer"](), batch, 1e-3
    v, direction = directions(model, 1)[:, 0], np.random.default_rng(2).standard_normal(x.shape)
    at = lambda t: gradient(traced_loss, model, (x + t * direction, y)) @ v  # noqa: E731
    expected = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
    found, _ = backend.input_derivatives(loss, model, batch, v)
    np.testing.assert_allclose(np.sum(found * direction), expected, rtol=RTOL)


def variance_of(values):
    return tf.nn.moments(values, [0])[1]


def variance_by_hand(values):
    mean = tf.stop_gradient(tf.reduce_mean(values, 0, keepdims=True))
    return tf.reduce_mean(tf.math.squared_difference(mean, values), 0)


@tf.function(reduce_retracing=True)
def variance_if_traced(values):
    return tf.nn.moments(values, [0])[1] if tf.reduce_sum(values) < 1e9 else tf.constant(0.0, tf.float64)


@pytest.mark.parametrize("variance", [variance_of, variance_by_hand, variance_if_traced])
@pytest.mark.parametrize("read", [lambda w: w, tf.convert_to_tensor])
def test_variance_has_its_closed_form(backend, variance, read):
    w = [tf.Variable(np.array([0.5, -0.25, 2.0, 1.0]))]
    product = backend.hvp(lambda p, _: variance(read(p[0])), w, None, np.eye(4))
    np.testing.assert_allclose(product, 2 / 4 * (np.eye(4) - 1 / 4), rtol=0, atol=1e-15)


def test_other_stopped_gradients_keep_their_meaning(backend):
    def loss(p, _):
        x = p[0]
        target = tf.stop_gradient(tf.reduce_mean(x**2))
        return (
            tf.reduce_sum((x - target) ** 2) / 2
            + tf.reduce_sum(tf.math.squared_difference(x, target)) / 2
            + variance_of(x)
        )

    w = [tf.Variable(np.array([0.5, -0.25]))]
    product = backend.hvp(loss, w, None, np.eye(2))
    np.testing.assert_allclose(product, 2 * np.eye(2) + (np.eye(2) - 1 / 2), rtol=0, atol=1e-15)


def test_moments_of_data_are_no_obstacle(backend):
    w = [tf.Variable(np.array([0.5, -0.25]))]
    product = backend.hvp(lambda p, x: tf.reduce_sum(p[0] ** 2) * variance_of(x)[0], w, np.eye(3), np.ones(2))
    np.testing.assert_allclose(product, 4 / 9 * np.ones(2))


def test_moments_that_cannot_be_traced_again_are_named(backend):
    concrete = tf.function(variance_of).get_concrete_function(tf.TensorSpec((3,), tf.float64))
    w = [tf.Variable(np.array([0.5, -0.25, 2.0]))]
    with pytest.raises(UnsupportedOperation, match=r"tf\.nn\.moments"):
        backend.hvp(lambda p, _: concrete(tf.convert_to_tensor(p[0])), w, None, np.ones(3))
    assert np.all(np.isfinite(backend.grad(lambda p, _: concrete(tf.convert_to_tensor(p[0])), w, None)))


def test_traces_of_the_user_are_their_own(backend):
    function = tf.function(variance_of)
    w = [tf.Variable(np.array([0.5, -0.25, 2.0]))]
    backend.hvp(lambda p, _: function(tf.convert_to_tensor(p[0])), w, None, np.ones(3))
    (concrete,) = function._list_all_concrete_functions()
    assert has_stopped_mean(concrete.graph.as_graph_def())


def test_tensorflow_is_as_it_was_for_other_threads_and_after_a_failure():
    places = lambda: (op_def_library._apply_op_helper, type(traced_loss).__call__)  # noqa: E731
    before, seen = places(), []

    def elsewhere():
        concrete = tf.function(variance_of).get_concrete_function(tf.TensorSpec((3,), tf.float64))
        seen.append(has_stopped_mean(concrete.graph.as_graph_def()))

    def failing():
        with differentiable_moments():
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            with differentiable_moments():
                pass
            assert places() != before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert seen == [True]
    assert places() == before
