"""Solves and optima that tapes differentiate, against differences."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from numpy.testing import assert_allclose

import ihvp

RNG = np.random.default_rng(0)
X, Y, V, C = (RNG.standard_normal(shape) for shape in ((12, 3), 12, 3, 3))
TIGHT = ihvp.CG(rtol=1e-13)
STEP = 1e-5


def errors(w, batch):
    return tf.linalg.matvec(batch[0], w["w"]) - batch[1]


def loss(w, batch):
    return tf.reduce_mean(tf.math.log(tf.cosh(errors(w, batch)))) + 0.1 * tf.reduce_sum(w["w"] ** 4)


def ridge(w, h, batch):
    return tf.reduce_mean(errors(w, batch) ** 2) / 2 + tf.reduce_sum(h["decay"] * w["w"] ** 2) / 2


def fit(decay):
    return np.linalg.solve(X.T @ X / 12 + np.diag(decay), X.T @ Y / 12)


@pytest.fixture
def weights():
    return {"w": tf.Variable([0.5, -1.0, 0.3], dtype=tf.float64)}


def test_gradients_of_a_solve(weights):
    H = ihvp.Hessian(ihvp.Objective(loss, weights, (X, Y)))
    w, v, damping = weights["w"], tf.constant(V), tf.constant(0.3, tf.float64)

    def value(v, damping):
        return tf.tensordot(ihvp.differentiable_solve(H, v, damping, TIGHT, params=weights), C, 1)

    with tf.GradientTape(persistent=True) as outer:
        outer.watch(v)
        with tf.GradientTape() as tape:
            tape.watch([v, damping])
            found = value(v, damping)
        by_w, by_v, by_damping = tape.gradient(found, [w, v, damping])

    def difference(change):
        above = change(STEP)
        return (above - change(-STEP)).numpy() / (2 * STEP)

    start = w.numpy()

    def of_weights(i, step):
        w.assign(start + step * np.eye(3)[i])
        try:
            return value(v, damping)
        finally:
            w.assign(start)

    for i in range(3):
        assert_allclose(by_w[i], difference(lambda step, i=i: of_weights(i, step)), rtol=1e-6)
        assert_allclose(by_v[i], difference(lambda step, i=i: value(V + step * np.eye(3)[i], 0.3)), rtol=1e-6)
    assert_allclose(by_damping, difference(lambda step: value(v, 0.3 + step)), rtol=1e-6)
    with pytest.raises(ihvp.errors.UnsupportedOperation, match="a solve of ihvp"):
        outer.gradient(by_v, v)


def test_gradients_of_an_optimum():
    decay = tf.Variable([0.1, 0.2, 0.3], dtype=tf.float64)
    w = fit(decay.numpy())
    problem = ihvp.InnerProblem(ridge, {"w": tf.Variable(w)}, {"decay": decay}, (X, Y), solver=TIGHT)
    other = tf.constant([0.4, 0.5, 0.6], tf.float64)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(other)
        here = tf.reduce_sum(problem.optimum()["w"] ** 2)
        moved = problem.optimum({"w": tf.constant(fit(other.numpy()))}, {"decay": other})
        there = tf.reduce_sum(moved["w"] ** 2)
    for value, at in ((here, decay), (there, other)):
        w = fit(at.numpy())
        exact = -w * np.linalg.solve(X.T @ X / 12 + np.diag(at.numpy()), 2 * w)
        assert_allclose(tape.gradient(value, at), exact, rtol=1e-8)


def test_hyperparameters_of_a_model():
    features = tf.keras.Sequential([tf.keras.layers.Dense(2, activation="tanh", dtype="float64")])
    features.build((None, 3))
    head = tf.keras.Sequential([tf.keras.layers.Dense(1, use_bias=False, dtype="float64")])
    head.build((None, 2))

    def inner(head, features, batch):
        x, y = batch
        square = tf.reduce_mean((head(features(x))[:, 0] - y) ** 2)
        return square + 0.1 * tf.reduce_sum(head.trainable_variables[0] ** 2)

    def outer(head, features, batch):
        return tf.reduce_mean(head(features(batch)))

    def refitted():
        Z = features(X).numpy()
        w = np.linalg.solve(Z.T @ Z / 12 + 0.1 * np.eye(2), Z.T @ Y / 12)
        head.trainable_variables[0].assign(w[:, None])
        return outer(head, features, X[:4])

    refitted()
    found = ihvp.hypergradient(outer, inner, head, features, (X, Y), X[:4], solver=TIGHT).gradient
    kernel = features.trainable_variables[0]
    start, values = kernel.numpy(), []
    for step in (STEP, -STEP):
        kernel.assign(start + step * np.eye(3, 2))
        values.append(refitted().numpy())
    assert_allclose(np.sum(found[0] * np.eye(3, 2)), (values[0] - values[1]) / (2 * STEP), rtol=1e-5)


CALLS = {
    "a product": lambda H, v: H @ v,
    "a vector in the structure": lambda H, v: (H @ {"w": v})["w"],
    "a solve": lambda H, v: ihvp.solve(H, v, damping=1.0).x,
    "data": lambda H, v: H.objective.on((X * v, Y)).gradient(),
    "nothing": lambda H, v: H @ V,
    "a solve to differentiate": lambda H, v: ihvp.differentiable_solve(H, v, 1.0),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_a_tf_function_traces_is_named(weights, call):
    H = ihvp.Hessian(ihvp.Objective(loss, weights, (X, Y)))

    def function(v):
        return call(H, v)

    with pytest.raises(ihvp.errors.TracedValue, match=r"tf\.function"):
        tf.function(function)(tf.constant(V))
