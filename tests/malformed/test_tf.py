"""Arguments of the wrong kind, with TensorFlow: each is named, or means something after all."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf

import ihvp
from ihvp import errors

from . import calls

VALUES = {
    "tensor of another dtype": lambda: tf.ones(3, dtype=tf.float32),
    "integer tensor": lambda: tf.range(3),
    "0-d tensor": lambda: tf.constant(0.5),
    "empty tensor": lambda: tf.zeros(0, dtype=tf.float64),
    "wrong length of tensor": lambda: tf.ones(5, dtype=tf.float64),
    "ragged tensor": lambda: tf.ragged.constant([[1.0], [2.0, 3.0]]),
    "sparse tensor": lambda: tf.sparse.from_dense(tf.eye(3)),
    "tensor of texts": lambda: tf.constant(["a", "b", "c"]),
    "variable": lambda: tf.Variable(tf.ones(3, dtype=tf.float64)),
    "optimizer": lambda: tf.keras.optimizers.SGD(),
    "keras loss": lambda: tf.keras.losses.MeanSquaredError(),
    "unbuilt model": lambda: tf.keras.Sequential([tf.keras.layers.Dense(1)]),
    "data set": lambda: tf.data.Dataset.from_tensor_slices(tf.ones((4, 3))),
    "loss of outputs": lambda: lambda outputs, y: tf.reduce_mean((outputs - y) ** 2),
    "one example without a batch": lambda: (tf.ones(3, dtype=tf.float64), tf.constant(1.0, tf.float64)),
    "dtype": lambda: tf.float64,
    "tensor shape": lambda: tf.TensorShape(None),
}


def loss(params, batch):
    x, y = batch
    return tf.reduce_mean((tf.linalg.matvec(x, params[0]) - y) ** 2) / 2


def predict(params, batch):
    return tf.linalg.matvec(batch[0], params[0])


def output_loss(outputs, batch):
    return tf.reduce_mean((outputs - batch[1]) ** 2) / 2


@functools.cache
def made():
    problem = calls.Problem(
        {"loss": loss},
        [tf.Variable(calls.W)],
        (tf.constant(calls.X), tf.constant(calls.Y)),
        predict,
        output_loss,
    )
    return [*calls.of_objectives(problem), *calls.removals(problem, loss)]


@pytest.mark.parametrize("seed", range(2))
def test_every_wrong_argument_is_named(seed):
    found = calls.outcomes(made(), 40, seed, VALUES)
    assert not found.unnamed, "\n".join(found.unnamed)
    assert found.counts["named"] > 20


def by_partition(params, batch):
    errors = tf.tanh(tf.linalg.matvec(batch[0], params[0])) - batch[1]
    low, high = tf.dynamic_partition(errors**2, tf.cast(batch[1] > 0, tf.int32), 2)
    return (tf.reduce_sum(low) + tf.reduce_sum(high)) / tf.cast(tf.shape(errors)[0], tf.float64)


def by_loop(params, batch):
    outputs = tf.linalg.matvec(batch[0], params[0])
    _, outputs = tf.while_loop(
        lambda i, t: i < 3, lambda i, t: (i + 1, tf.tanh(t * params[0][0])), [tf.constant(0), outputs]
    )
    return tf.reduce_mean((outputs - batch[1]) ** 2)


@pytest.mark.parametrize("own", [by_partition, by_loop])
def test_rows_that_cannot_be_made_together_are_made_one_by_one_quietly(own, capfd):
    weights = tf.Variable(calls.W)
    expected = []
    for x, y in zip(calls.X, calls.Y, strict=True):
        with tf.GradientTape() as tape:
            value = own([weights], (tf.constant(x[None]), tf.constant(y[None])))
        expected.append(tape.gradient(value, weights).numpy())
    objective = ihvp.Objective(own, [weights], (tf.constant(calls.X), tf.constant(calls.Y)))
    capfd.readouterr()
    np.testing.assert_allclose(objective.per_example_gradients(), expected, rtol=1e-9, atol=1e-12)
    assert capfd.readouterr() == ("", "")


def test_what_tensorflow_raises_in_a_loss_keeps_its_text():
    def mismatched(params, batch):
        return tf.reduce_mean(tf.linalg.matvec(batch[0], params[0][:2]))

    objective = ihvp.Objective(mismatched, [tf.Variable(calls.W)], (tf.constant(calls.X),))
    with pytest.raises(
        errors.LossFailed, match=r"(?s)The gradient failed with .*loss\(params, batch\)"
    ) as caught:
        objective.gradient()
    assert str(caught.value.__cause__)[:100] in str(caught.value)
