"""Values, products with single gradients, and derivatives by the data."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import ihvp


@pytest.fixture
def model():
    layers = [keras.Input((3,), dtype="float64"), keras.layers.Dense(1, dtype="float64")]
    model = keras.Sequential(layers)
    model.set_weights([np.array([[1.0], [-2.0], [0.5]]), np.array([0.25])])
    return model


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(5, 3))


def square(model, x):
    return tf.reduce_mean(model(x)[:, 0] ** 2)


def outputs(model, x):
    weights, bias = model.get_weights()
    return (x @ weights + bias)[:, 0]


def test_other_values_of_a_model_are_put_in_its_place(backend, model, x):
    before = [array.copy() for array in model.get_weights()]
    shifted = backend.unflatten(np.array([0.0, 0.0, 0.0, 3.0]), model)
    assert float(backend.value(square, shifted, x)) == 9.0
    assert ihvp.Objective(square, model, x).at(shifted).value() == 9.0
    for array, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(array, kept)


def test_what_a_loss_changes_is_put_back(backend, x):
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(), keras.layers.Dense(1)])
    before = [variable.numpy().tobytes() for variable in model.variables]
    backend.value(lambda m, x: tf.reduce_mean(m(x, training=True) ** 2), model, x.astype(np.float32))
    assert [variable.numpy().tobytes() for variable in model.variables] == before


def test_products_and_derivatives_of_ragged_batches(backend, model, x):
    v = np.array([1.0, 0.5, -1.0, 2.0])
    by_v, weights = x @ v[:3] + v[3], v[:3]
    for rows in (slice(0, 5), slice(0, 2), slice(1, 4)):
        part = x[rows]
        product = backend.example_products(square, model, part, v)
        np.testing.assert_allclose(product, 2 * outputs(model, part) * by_v[rows], rtol=1e-12)
        found = backend.input_derivatives(square, model, part, v)
        kernel = model.get_weights()[0][:, 0]
        expected = np.outer(by_v[rows], kernel) + np.outer(outputs(model, part), weights)
        np.testing.assert_allclose(found, 2 / len(part) * expected, rtol=1e-12)


def test_what_cannot_be_vectorised_is_done_in_turn(backend, model, x):
    counter = tf.Variable(0)

    def loss(model, x):
        counter.assign_add(1)
        return square(model, x)

    block = np.random.default_rng(1).normal(size=(4, 3))
    rows = backend.per_example_grads(square, model, x)
    np.testing.assert_allclose(backend.example_products(loss, model, x, block), rows @ block, rtol=1e-12)
    assert counter.numpy() == 0


def test_a_silently_constant_gradient_is_refused(backend):
    w = [tf.Variable(np.ones((1, 2, 2, 1), np.float32))]

    def loss(w, batch):
        return tf.reduce_mean(tf.image.resize(w[0] * batch[0], (3, 3)) ** 2)

    with pytest.raises(ihvp.errors.UnsupportedOperation):
        backend.input_derivatives(loss, w, (np.ones((1, 2, 2, 1), np.float32),), np.ones(4, np.float32))
