"""Removals trained again in this process and in others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import ihvp
from ihvp.errors import ParameterError

X = np.random.default_rng(0).normal(size=(20, 3))
Y = X @ np.array([1.0, -2.0, 0.5]) + np.random.default_rng(1).normal(size=20)
TEST = X[:4] + 0.1, Y[:4]


def optimum(removed):
    keep = np.delete(np.arange(20), removed)
    return np.linalg.lstsq(X[keep], Y[keep])[0]


def actual(removed):
    losses = [np.mean((TEST[0] @ w - TEST[1]) ** 2) / 2 for w in (optimum(removed), optimum([]))]
    return losses[0] - losses[1]


def removals(n_jobs):
    def loss(w, batch):
        x, y = batch
        return ((x @ w["weight"] - y) ** 2).mean() / 2

    def train(removed, start):
        return {"weight": jnp.asarray(optimum(removed))}

    objective = ihvp.Objective(loss, {"weight": jnp.asarray(optimum([]))}, (jnp.asarray(X), jnp.asarray(Y)))
    return ihvp.leave_one_out(objective, train, range(4), TEST, n_jobs=n_jobs)


def test_actual_changes_are_those_of_the_closed_form():
    assert_allclose(removals(1).actual, [actual(i) for i in range(4)], rtol=1e-10)


def test_several_processes_find_the_same_in_single_precision():
    with jax.enable_x64(False):
        assert_allclose(removals(2).actual, [actual(i) for i in range(4)], rtol=1e-3, atol=1e-6)


def test_processes_of_another_precision_are_refused_with_the_remedy(monkeypatch):
    """Where double precision was switched on in this process alone."""
    monkeypatch.delenv("JAX_ENABLE_X64", raising=False)
    with pytest.raises(ParameterError, match="JAX_ENABLE_X64=1"):
        removals(2)
