"""Hypergradients of three frameworks against closed forms, and against differences of optima fitted anew."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

import ihvp
from ihvp._registry import registered
from ihvp.algebra import to_numpy

FRAMEWORKS = ["torch", "jax", "tf"]
RNG = np.random.default_rng(0)
X, XT = RNG.standard_normal((12, 3)), RNG.standard_normal((9, 3))
Y, YT = RNG.standard_normal(12), RNG.standard_normal(9)
SIGNS, SIGNS_T = np.sign(Y), np.sign(YT)
TIGHT = ihvp.CG(rtol=1e-13)


@pytest.fixture(params=FRAMEWORKS)
def dialect(request):
    return registered().plugins[request.param].dialect()


def scores(xp, w, x):
    return xp.sum(xp.asarray(x) * w["w"], axis=1)


def square_loss(xp):
    return lambda w, h, batch: xp.mean((scores(xp, w, batch[0]) - xp.asarray(batch[1])) ** 2) / 2


def test_ridge_with_a_decay_for_each_weight(dialect):
    xp, decay = dialect.xp, np.array([0.1, 0.3, 1.0])
    A = X.T @ X / len(Y) + np.diag(decay)
    w = np.linalg.solve(A, X.T @ Y / len(Y))
    slope = XT.T @ (XT @ w - YT) / len(YT)
    outer = square_loss(xp)

    def inner(w, h, batch):
        return outer(w, h, batch) + xp.sum(h["decay"] * w["w"] ** 2) / 2

    arguments = dialect.parameters({"w": w}), dialect.parameters({"decay": decay}), (X, Y), (XT, YT)
    found = ihvp.hypergradient(outer, inner, *arguments, solver=TIGHT)
    exact = -w * np.linalg.solve(A, slope)
    assert_allclose(to_numpy(found.gradient["decay"]), exact, rtol=1e-8)
    assert found.error < 1e-10
    pieces = ihvp.hypergradient(outer, inner, *arguments, solver=TIGHT, batch_size=4, bound=False)
    assert_allclose(to_numpy(pieces.gradient["decay"]), exact, rtol=1e-8)


def test_decay_of_logistic_regression_as_a_number(dialect):
    xp = dialect.xp

    def outer(w, h, batch):
        return xp.mean(xp.log(1 + xp.exp(-xp.asarray(batch[1]) * scores(xp, w, batch[0]))))

    def inner(w, h, batch):
        return outer(w, h, batch) + h * xp.sum(w["w"] ** 2) / 2

    def fit(decay):
        w = np.zeros(3)
        for _ in range(30):
            p = 1 / (1 + np.exp(SIGNS * (X @ w)))
            H = (X.T * (p * (1 - p))) @ X / len(Y) + decay * np.eye(3)
            w = w - np.linalg.solve(H, decay * w - X.T @ (SIGNS * p) / len(Y))
        return w

    def refitted(decay):
        return np.mean(np.log1p(np.exp(-SIGNS_T * (XT @ fit(decay)))))

    params = dialect.parameters({"w": fit(0.2)})
    found = ihvp.hypergradient(outer, inner, params, 0.2, (X, SIGNS), (XT, SIGNS_T), solver=TIGHT)
    assert isinstance(found.gradient, float)
    assert_allclose(found.gradient, (refitted(0.2 + 1e-5) - refitted(0.2 - 1e-5)) / 2e-5, rtol=1e-5)


def test_weights_of_examples_that_clean_the_data(dialect):
    xp, weights = dialect.xp, np.linspace(0.2, 1.0, len(Y))
    A = (X.T * weights) @ X / len(Y) + 0.1 * np.eye(3)
    w = np.linalg.solve(A, X.T @ (weights * Y) / len(Y))
    adjoint = np.linalg.solve(A, XT.T @ (XT @ w - YT) / len(YT))

    def inner(w, h, batch):
        errors = (scores(xp, w, batch[0]) - xp.asarray(batch[1])) ** 2
        return xp.mean(h * errors) / 2 + 0.05 * xp.sum(w["w"] ** 2)

    params = dialect.parameters({"w": w})
    found = ihvp.hypergradient(square_loss(xp), inner, params, weights, (X, Y), (XT, YT), solver=TIGHT)
    assert isinstance(found.gradient, np.ndarray)
    assert_allclose(found.gradient, -(X @ w - Y) * (X @ adjoint) / len(Y), rtol=1e-8)


def test_hyperparameters_that_no_loss_uses_are_named(dialect):
    params = dialect.parameters({"w": np.zeros(3)})
    loss = square_loss(dialect.xp)
    with (
        pytest.warns(ihvp.influence.NotAtOptimum),
        pytest.raises(ihvp.errors.HyperparametersWithoutEffect, match="depends on hyper;"),
    ):
        ihvp.hypergradient(loss, loss, params, np.array(0.1), (X, Y), (XT, YT))
