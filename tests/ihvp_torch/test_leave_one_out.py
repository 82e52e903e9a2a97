"""Removals trained again in this process and in others, on a module and on a dict of tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import ihvp

X = np.random.default_rng(0).normal(size=(20, 3))
Y = X @ np.array([1.0, -2.0, 0.5]) + np.random.default_rng(1).normal(size=20)
TEST = X[:4] + 0.1, Y[:4]


def optimum(removed):
    keep = np.delete(np.arange(20), removed)
    return np.linalg.lstsq(X[keep], Y[keep])[0]


def loss_at(w):
    return np.mean((TEST[0] @ w - TEST[1]) ** 2) / 2


@pytest.fixture(params=["module", "dict"])
def problem(request):
    """An objective at its optimum, and what trains it again."""
    weight = torch.tensor(optimum([])[None])
    if request.param == "module":
        params = torch.nn.Linear(3, 1, bias=False, dtype=torch.float64)
        params.weight.data = weight
    else:
        params = {"weight": weight}

    def predicted(params, x):
        return params(x) if isinstance(params, torch.nn.Module) else x @ params["weight"].T

    def loss(params, batch):
        x, y = batch
        return ((predicted(params, x)[:, 0] - y) ** 2).mean() / 2

    def train(removed, start):
        tensor = start.weight.data if isinstance(start, torch.nn.Module) else start["weight"]
        tensor[:] = torch.tensor(optimum(removed))
        return start

    return ihvp.Objective(loss, params, (torch.tensor(X), torch.tensor(Y))), train


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_actual_changes_are_those_of_the_closed_form_and_the_objective_stays(problem, n_jobs):
    objective, train = problem
    before = objective.backend.flatten(objective.params)
    found = ihvp.leave_one_out(objective, train, range(4), tuple(map(torch.tensor, TEST)), n_jobs=n_jobs)
    expected = [loss_at(optimum(i)) - loss_at(optimum([])) for i in range(4)]
    assert_allclose(found.actual, expected, rtol=1e-10)
    assert torch.equal(objective.backend.flatten(objective.params), before)


def test_numpy_test_points_are_taken_too(problem):
    objective, train = problem
    found = ihvp.leave_one_out(objective, train, [0], TEST)
    assert_allclose(found.actual, loss_at(optimum(0)) - loss_at(optimum([])), rtol=1e-10)
