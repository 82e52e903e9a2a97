"""Losses that cannot be differentiated, each with its named error."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from ihvp.errors import (
    DataError,
    LossError,
    LossIndependentOfParameters,
    LossNotScalar,
    UnequalBatches,
    UnsupportedOperation,
)


@pytest.fixture
def w():
    return [tf.Variable(np.array([0.5, -0.25, 2.0]))]


CALLS = {
    "grad": lambda backend, loss, w: backend.grad(loss, w, None),
    "hvp": lambda backend, loss, w: backend.hvp(loss, w, None, np.ones(3)),
    "block": lambda backend, loss, w: backend.hvp(loss, w, None, np.ones((3, 2))),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("loss", "found"),
    [
        (lambda p, b: p[0] ** 2, r"shape \(3,\)"),
        (lambda p, b: tf.reduce_sum(p[0], keepdims=True), r"shape \(1,\)"),
        (lambda p, b: None, "None"),
        (lambda p, b: tf.cast(tf.reduce_sum(p[0]), tf.int32), "int32"),
        (lambda p, b: tf.cast(tf.reduce_sum(p[0]), tf.complex128), "complex128"),
        (lambda p, b: {"loss": tf.reduce_sum(p[0])}, "dict"),
    ],
    ids=["vector", "keepdims", "none", "integer", "complex", "dict"],
)
def test_loss_that_is_no_scalar_is_named(backend, w, name, loss, found):
    with pytest.raises(LossNotScalar, match=found):
        CALLS[name](backend, loss, w)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "loss",
    [
        lambda p, b: tf.constant(1.0),
        lambda p, b: 1.0,
        lambda p, b: tf.reduce_sum(tf.stop_gradient(p[0])),
    ],
    ids=["constant", "number", "stopped"],
)
def test_loss_without_the_parameters_is_named(backend, w, name, loss):
    with pytest.raises(LossIndependentOfParameters):
        CALLS[name](backend, loss, w)


def test_outputs_without_the_parameters_are_named(backend, w):
    with pytest.raises(LossIndependentOfParameters, match="outputs"):
        backend.gnvp(lambda p, b: tf.ones(2), lambda o, b: tf.reduce_sum(o**2), w, None, np.ones(3))
    with pytest.raises(LossIndependentOfParameters, match="ignores the outputs"):
        backend.gnvp(lambda p, b: p[0], lambda o, b: tf.constant(1.0), w, None, np.ones(3))


def softsign(p, b):
    return tf.reduce_sum(tf.nn.softsign(p[0]))


def resized(p, b):
    image = tf.cast(tf.reshape(p[0] ** 2, (1, 1, 3, 1)), tf.float32)
    return tf.reduce_sum(tf.image.resize(image, (2, 2)) ** 2)


def through_python(p, b):
    return tf.py_function(lambda z: tf.reduce_sum(z**3), [p[0]], tf.float64)


def recomputed(p, b):
    return tf.reduce_sum(tf.recompute_grad(lambda z: z**3)(p[0] * 1.0))


@pytest.mark.parametrize("name", ["hvp", "block"])
@pytest.mark.parametrize(
    ("loss", "operation"),
    [
        (softsign, "SoftsignGrad"),
        (resized, "ResizeBilinearGrad"),
        (through_python, "tf.py_function"),
        (recomputed, "recompute_grad"),
    ],
)
def test_operation_without_second_derivative_is_named(backend, w, name, loss, operation):
    with pytest.raises(UnsupportedOperation) as caught:
        CALLS[name](backend, loss, w)
    assert caught.value.operation == operation


def test_operation_whose_jacobian_product_would_be_wrong_is_named(backend, w):
    def predict(p, b):
        image = tf.cast(tf.reshape(p[0], (1, 1, 3, 1)), tf.float32)
        return tf.image.resize(image, (2, 2))

    with pytest.raises(UnsupportedOperation, match="ResizeBilinearGrad"):
        backend.gnvp(predict, lambda o, b: tf.reduce_sum(o**2), w, None, np.ones(3))


@pytest.mark.parametrize("loss", [softsign, resized, through_python])
def test_first_gradient_of_the_same_operations_works(backend, w, loss):
    gradient = backend.grad(loss, w, None)
    assert np.all(np.isfinite(gradient))
    assert np.linalg.norm(gradient) > 0.1


def test_resized_data_is_no_obstacle(backend, w):
    def loss(p, b):
        return tf.reduce_sum(tf.cast(tf.image.resize(b, (2, 2)), tf.float64)) * tf.reduce_sum(p[0] ** 2)

    product = backend.hvp(loss, w, np.ones((1, 3, 3, 1)), np.ones(3))
    np.testing.assert_allclose(product, 8.0 * np.ones(3), rtol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        lambda p, b: tf.reduce_sum(p[0]) * p[0].numpy().sum(),
        lambda p, b: tf.reduce_sum(np.square(p[0] * 2.0)),
        lambda p, b: tf.reduce_sum(p[0]) * float(np.asarray(b).sum()),
    ],
    ids=["numpy method", "numpy function", "numbers of the batch"],
)
def test_loss_that_needs_numbers_while_traced_is_told_so(backend, w, loss):
    with pytest.raises(LossError, match="while TensorFlow compiles"):
        backend.grad(loss, w, np.ones(2))


def test_own_exception_of_a_loss_is_not_renamed(backend, w):
    def loss(p, b):
        raise ZeroDivisionError("my own")

    with pytest.raises(ZeroDivisionError, match="my own"):
        backend.hvp(loss, w, None, np.ones(3))


def test_per_example_gradients_need_arrays_of_one_length(backend, w):
    def loss(p, b):
        return tf.reduce_sum(p[0] ** 2)

    with pytest.raises(DataError, match="no array with a leading dimension"):
        backend.per_example_grads(loss, w, None)
    with pytest.raises(UnequalBatches, match="2 and 3 rows"):
        backend.per_example_grads(loss, w, (np.ones(2), np.ones(3)))
