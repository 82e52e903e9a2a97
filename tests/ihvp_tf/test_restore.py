"""Parameters from what Keras saves: into copies, with the state that is not trained."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from numpy.testing import assert_array_equal

import ihvp
from ihvp.errors import DataError, ParameterError

# Keras asks numpy for copies in a way that numpy has deprecated, where it saves and reads weights.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

X, Y = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32), np.arange(6) % 3


def made(width=5):
    tf.keras.utils.set_random_seed(0)
    return tf.keras.Sequential(
        [
            tf.keras.Input((4,)),
            tf.keras.layers.Dense(width, activation="tanh"),
            tf.keras.layers.BatchNormalization(),
            tf.keras.layers.Dense(3),
        ]
    )


def loss(model, batch):
    losses = tf.keras.losses.sparse_categorical_crossentropy(batch[1], model(batch[0]), from_logits=True)
    return tf.reduce_mean(losses)


def test_each_form_gives_the_gradients_of_the_checkpoint(tmp_path):
    model, other = made(), made()
    model.layers[0].trainable = other.layers[0].trainable = False
    other.set_weights([array + 0.5 for array in other.get_weights()])
    other.save_weights(tmp_path / "saved.weights.h5")
    np.savez(tmp_path / "arrays.npz", **{v.path: np.asarray(v) for v in other.weights})
    names = {ours.path: np.asarray(theirs) for ours, theirs in zip(model.weights, other.weights, strict=True)}
    objective, before = ihvp.Objective(loss, model, (X, Y)), model.get_weights()
    expected = ihvp.Objective(loss, other, (X, Y)).gradient()
    for checkpoint in (other, other.get_weights(), names, tmp_path / "saved.weights.h5"):
        found = ihvp.TracIn(objective, [checkpoint])._models[0][1].objective
        assert_array_equal(found.gradient(), expected)
    for old, new in zip(before, model.get_weights(), strict=True):
        assert_array_equal(old, new)


def test_variables_and_their_values():
    w = {"a": tf.Variable([1.0, 2.0]), "b": tf.Variable([3.0])}
    objective = ihvp.Objective(lambda w, x: tf.reduce_sum(w["a"]) * w["b"][0] * tf.reduce_mean(x), w, X)
    for checkpoint in ({"a": [2.0, 3.0], "b": [4.0]}, [np.array([2.0, 3.0]), np.array([4.0])]):
        found = ihvp.TracIn(objective, [checkpoint])._models[0][1].objective
        assert_array_equal(found.backend.flatten(found.params), [2, 3, 4])
    assert_array_equal(w["a"].numpy(), [1, 2])


def test_other_architectures_and_files(tmp_path):
    objective = ihvp.Objective(loss, made(), (X, Y))
    made(6).save_weights(tmp_path / "wider.weights.h5")
    (tmp_path / "torn.weights.h5").write_bytes(b"torn")
    for checkpoint, error, message in (
        (made(6), ParameterError, r"found \(4, 6\), expected \(4, 5\)"),
        (tmp_path / "wider.weights.h5", ParameterError, "another architecture"),
        (tmp_path / "torn.weights.h5", DataError, "cannot be read"),
        (tmp_path / "model.keras", DataError, r"expected \.npz"),
    ):
        if checkpoint == tmp_path / "model.keras":
            checkpoint.write_bytes(b"code")
        with pytest.raises(error, match=message):
            ihvp.TracIn(objective, [checkpoint])
