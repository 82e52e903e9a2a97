"""Removals trained again in this process and in others, on a Keras model and on variables."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.testing import assert_allclose, assert_array_equal

import ihvp

# Of Keras under numpy 2, where it saves a model to copy it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

X = np.random.default_rng(0).normal(size=(20, 3))
Y = X @ np.array([1.0, -2.0, 0.5]) + np.random.default_rng(1).normal(size=20)
TEST = X[:4] + 0.1, Y[:4]


def optimum(removed):
    keep = np.delete(np.arange(20), removed)
    return np.linalg.lstsq(X[keep], Y[keep])[0]


def actual(removed):
    losses = [np.mean((TEST[0] @ w - TEST[1]) ** 2) / 2 for w in (optimum(removed), optimum([]))]
    return losses[0] - losses[1]


@pytest.fixture(params=["model", "variables"])
def problem(request):
    """An objective at its optimum, and what trains it again."""
    weight = optimum([])[:, None]
    if request.param == "model":
        params = keras.Sequential(
            [keras.Input((3,), dtype="float64"), keras.layers.Dense(1, use_bias=False, dtype="float64")]
        )
        params.set_weights([weight])
    else:
        params = [tf.Variable(weight)]

    def loss(params, batch):
        x, y = batch
        predicted = params(x) if isinstance(params, keras.Model) else tf.matmul(x, params[0])
        return tf.reduce_mean((predicted[:, 0] - y) ** 2) / 2

    def train(removed, start):
        variables = start.trainable_variables if isinstance(start, keras.Model) else start
        variables[0].assign(optimum(removed)[:, None])
        return start

    return ihvp.Objective(loss, params, (tf.constant(X), tf.constant(Y))), train


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_actual_changes_are_those_of_the_closed_form_and_the_objective_stays(problem, n_jobs):
    objective, train = problem
    before = objective.backend.flatten(objective.params)
    found = ihvp.leave_one_out(objective, train, range(4), tuple(map(tf.constant, TEST)), n_jobs=n_jobs)
    assert_allclose(found.actual, [actual(i) for i in range(4)], rtol=1e-10)
    assert_array_equal(objective.backend.flatten(objective.params), before)
