"""Nothing changes: parameters, moving averages, seeds, counters; also after a failure."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf


def noisy_model():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, activation="tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1),
        ]
    )
    return model, np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


def training_loss(model, batch):
    return tf.reduce_mean(model(batch, training=True) ** 2)


def bits(variables):
    return [variable.numpy().tobytes() for variable in variables]


def calls(backend, model, x):
    size = backend.flatten(model).size
    return {
        "grad": lambda loss: backend.grad(loss, model, x),
        "hvp": lambda loss: backend.hvp(loss, model, x, np.ones(size, np.float32)),
        "block": lambda loss: backend.hvp(loss, model, x, np.ones((size, 2), np.float32)),
        "per_example": lambda loss: backend.per_example_grads(loss, model, x),
        "gnvp": lambda loss: backend.gnvp(
            lambda m, b: m(b, training=True),
            lambda o, b: loss(lambda b, **_: o, b),
            model,
            x,
            np.ones(size, "f4"),
        ),
    }


@pytest.mark.parametrize("name", ["grad", "hvp", "block", "per_example", "gnvp"])
def test_model_in_training_mode_keeps_its_state(backend, name):
    model, x = noisy_model()
    before = bits(model.variables)
    calls(backend, model, x)[name](training_loss)
    assert bits(model.variables) == before


def test_training_mode_would_change_the_state():
    model, x = noisy_model()
    before = bits(model.non_trainable_variables)
    model(x, training=True)
    assert bits(model.non_trainable_variables) != before


def test_active_dropout_shows_itself_by_unequal_gradients(backend):
    model, x = noisy_model()
    one, two = (backend.grad(training_loss, model, x) for _ in range(2))
    assert np.linalg.norm(one - two) > 1e-2 * np.linalg.norm(one)


def test_batch_norm_in_training_mode_is_deterministic(backend):
    model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(), keras.layers.Dense(1)])
    x = noisy_model()[1]
    one, two = (backend.grad(training_loss, model, x) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_variables_that_a_loss_only_writes_are_put_back(backend):
    counter, log, table = tf.Variable(3), tf.Variable(0.0), tf.Variable(np.arange(3.0))

    def loss(params, batch):
        counter.assign_add(1)
        log.assign(params[0])
        table.scatter_nd_update([[1]], [7.0])
        return params[0] ** 2

    backend.grad(loss, [tf.Variable(2.0)], None)
    assert (counter.numpy(), log.numpy()) == (3, 0.0)
    np.testing.assert_array_equal(table.numpy(), [0, 1, 2])


def test_random_generator_keeps_its_state(backend):
    generator = tf.random.Generator.from_seed(1)
    before = generator.state.numpy().tobytes()
    w = [tf.Variable(1.0)]

    def loss(params, batch):
        return params[0] * generator.normal(())

    one, two = (backend.grad(loss, w, None) for _ in range(2))
    assert one != two
    assert generator.state.numpy().tobytes() == before


class Failed(Exception):
    pass


def special_variable():
    return tf.Variable(np.array([-0.0, np.nan, 5e-324, np.inf, 1.0]))


def test_values_are_taken_back_after_a_call(backend):
    w = special_variable()
    before = bits([w])
    backend.grad(lambda p, b: tf.reduce_sum(p[0] ** 2), backend.unflatten(np.ones(5), [w]), None)
    assert bits([w]) == before


def test_values_are_taken_back_after_a_failure_while_tracing(backend):
    w = special_variable()
    before = bits([w])

    def loss(params, batch):
        raise ValueError("my own")

    with pytest.raises(ValueError, match="my own"):
        backend.grad(loss, backend.unflatten(np.ones(5), [w]), None)
    assert bits([w]) == before


def test_values_and_state_are_taken_back_after_a_failure_while_running(backend):
    w, counter = special_variable(), tf.Variable(0)
    before = bits([w, counter])

    def loss(params, batch):
        counter.assign_add(1)
        with tf.control_dependencies([counter]):
            tf.debugging.assert_less(batch, tf.zeros_like(batch), message="too large")
        return tf.reduce_sum(params[0] ** 2)

    with pytest.raises(tf.errors.InvalidArgumentError, match="too large"):
        backend.grad(loss, backend.unflatten(np.ones(5), [w]), np.float64(1.0))
    assert bits([w, counter]) == before


def test_values_of_the_wrong_shape_leave_nothing_behind(backend):
    variables = [tf.Variable([1.0]), tf.Variable([2.0, 3.0])]
    before = bits(variables)
    values = backend.unflatten(np.zeros(3, np.float32), variables)
    values[1] = tf.zeros(5)
    with pytest.raises(ValueError, match=r"[Ss]hape"):
        backend.grad(lambda p, b: tf.reduce_sum(p[1] ** 2), values, None)
    assert bits(variables) == before
