"""What counts as parameters, and their values as a vector."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from ihvp.errors import ParameterError, WrongShape
from ihvp_tf._backend import TensorFlowBackend


def structures():
    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = tf.Variable([1.0, 2.0]), tf.Variable(3.0)
            self.frozen = tf.Variable(9.0, trainable=False)

    a, b = tf.Variable([1.0, 2.0]), tf.Variable(3.0)
    return {
        "list": [a, b],
        "tuple": (a, b),
        "dict": {"b": b, "a": a},
        "nested": {"z": (b,), "y": [a]},
        "keras variables": [keras.Variable([1.0, 2.0]), keras.Variable(3.0)],
        "module": Module(),
    }


@pytest.mark.parametrize("name", structures())
def test_flatten_follows_the_frameworks_order(backend, name):
    vector = backend.flatten(structures()[name])
    assert type(vector) is np.ndarray
    np.testing.assert_array_equal(vector, np.array([1, 2, 3], np.float32))


@pytest.mark.parametrize("name", structures())
def test_values_round_trip(backend, name):
    params = structures()[name]
    values = backend.unflatten(np.array([4, 5, 6], np.float32), params)
    np.testing.assert_array_equal(backend.flatten(values), np.array([4, 5, 6], np.float32))
    again = backend.unflatten(np.array([7, 8, 9], np.float32), values)
    np.testing.assert_array_equal(backend.flatten(again), np.array([7, 8, 9], np.float32))
    np.testing.assert_array_equal(backend.flatten(params), np.array([1, 2, 3], np.float32))


@pytest.mark.parametrize("name", structures())
def test_values_stand_for_their_parameters(backend, name):
    params = structures()[name]
    variables = list(params.trainable_variables) if name == "module" else tf.nest.flatten(params)

    def loss(p, batch):
        assert p is params
        return sum(tf.reduce_sum(variable**3) for variable in variables)

    values = backend.unflatten(np.array([4, 5, 6], np.float32), params)
    np.testing.assert_array_equal(backend.grad(loss, values, None), [48, 75, 108])
    product = backend.hvp(loss, values, None, np.ones(3, np.float32))
    np.testing.assert_array_equal(product, [24, 30, 36])
    np.testing.assert_array_equal(backend.grad(loss, params, None), [3, 12, 27])


def test_dtypes_come_back(backend):
    params = [tf.Variable([1.5], dtype=tf.float16), tf.Variable([0.1], dtype=tf.float64)]
    vector = backend.flatten(params)
    assert vector.dtype == np.float64
    values = backend.unflatten(vector, params)
    assert [value.dtype for value in values] == [tf.float16, tf.float64]
    np.testing.assert_array_equal(backend.flatten(values), vector)


def test_bfloat16_with_float16_is_promoted_to_float32(backend):
    params = [tf.Variable([1.5], dtype=tf.float16), tf.Variable([0.5], dtype=tf.bfloat16)]
    assert backend.flatten(params).dtype == np.float32


@pytest.mark.parametrize("kind", [np.asarray, tf.constant])
def test_arrays_in_the_parameters_structure_come_back_as_they_were(backend, kind):
    arrays = {"b": kind([3.0]), "a": kind([[1.0, 2.0]])}
    np.testing.assert_array_equal(backend.flatten(arrays), [1, 2, 3])
    back = backend.unflatten(backend.flatten(arrays), arrays)
    assert type(back) is dict
    assert type(back["a"]) is type(arrays["a"])
    assert back["a"].shape == (1, 2)


def test_container_of_values_rebuilt_by_its_class_is_plain(backend):
    params = [tf.Variable([1.0]), tf.Variable([2.0])]
    values = backend.unflatten(np.ones(2, np.float32), params)
    rebuilt = type(values)(list(values))
    np.testing.assert_array_equal(backend.flatten(rebuilt), [1, 1])
    assert tf.is_tensor(backend.unflatten(np.zeros(2, np.float32), rebuilt)[0])


def test_frozen_layers_are_left_out(backend):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    assert backend.flatten(model).size == 13
    model.layers[0].trainable = False
    assert backend.flatten(model).size == 4
    product = backend.hvp(lambda m, b: tf.reduce_mean(m(b) ** 2), model, np.ones((2, 2)), np.ones(4, "f4"))
    assert product.shape == (4,)


def test_layer_shared_by_two_paths_counts_once(backend):
    shared = keras.layers.Dense(2)
    inputs = keras.Input((2,))
    assert backend.flatten(keras.Model(inputs, shared(shared(inputs)))).size == 6


def test_device_is_where_the_variables_live():
    with tf.device("CPU:0"):
        assert TensorFlowBackend([tf.Variable(1.0)]).device == "cpu"


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ([tf.Variable([1, 2])], "dtype int32"),
        ([tf.Variable([1j])], "dtype complex128"),
        ([], "no parameter in list"),
        (tf.Variable([1.0]), "ResourceVariable"),
        ("weights", "builtins.str|str"),
        ([tf.Variable(1.0), "weights"], "number 1 is str"),
        ({"w": tf.constant([1.0])}, "EagerTensor"),
        ([np.ones(2)], "numpy.ndarray of shape"),
        (keras.Sequential([keras.layers.Dense(2)]), "Build the model"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_parameters_are_refused_by_name(params, found):
    with pytest.raises(ParameterError, match=found):
        TensorFlowBackend(params)


def test_variable_listed_twice_is_refused(backend):
    w = tf.Variable(1.0)
    with pytest.raises(ParameterError, match="twice"):
        backend.grad(lambda p, b: p[0] * p[1], [w, w], None)


def test_keras_with_another_backend_is_refused(backend, monkeypatch):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ParameterError, match="KERAS_BACKEND=tensorflow"):
        backend.flatten(model)


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1)])
def test_unflatten_refuses_a_vector_of_another_shape(backend, shape):
    with pytest.raises(WrongShape):
        backend.unflatten(np.ones(shape, np.float32), structures()["list"])


@pytest.mark.parametrize("shape", [(2,), (4, 3), (3, 0), ()])
def test_products_refuse_a_vector_of_another_shape(backend, shape):
    with pytest.raises(WrongShape):
        backend.hvp(lambda p, b: p[1] ** 2, structures()["list"], None, np.ones(shape, np.float32))
