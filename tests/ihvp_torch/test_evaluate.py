"""Scores of a torch model against training it again, and paths of dampings by Kronecker factors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional

import ihvp
from ihvp.errors import ParameterError
from ihvp.evaluate import brittleness, dampings, retrain

N = 60
DAMPINGS = [1.0, 0.03, 1e-3]


def predict(model, batch):
    return model(batch[0])


def loss(outputs, batch):
    return functional.cross_entropy(outputs, batch[1])


def wrong(outputs, batch):
    return (outputs.argmax(1) != batch[1]).double().mean()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def trained(model, x, y):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def problem():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N + 4, 5, dtype=torch.float64, generator=generator)
    y = (x[:, :3] + torch.randn(N + 4, 3, dtype=torch.float64, generator=generator)).argmax(1)
    objective = ihvp.Objective(loss, trained(network(), x[:N], y[:N]), (x[:N], y[:N]), predict=predict)
    return objective, (x[N:], y[N:]), lambda kept, seed: trained(network(), x[kept], y[kept])


@pytest.fixture(scope="module")
def outcomes(problem):
    objective, test, train = problem
    return retrain(objective, train, test, 12)


def test_losses_are_those_of_the_trained_modules(problem, outcomes):
    _, (x, y), train = problem
    model = train(np.flatnonzero(outcomes.subsets[3]), 0)
    expected = functional.cross_entropy(model(x), y, reduction="none")
    assert_allclose(outcomes.losses[3], expected.detach(), rtol=1e-10)


def test_predictions_that_become_wrong_are_counted(problem):
    objective, test, train = problem
    ranking = np.tile(np.arange(50), (4, 1))
    found = brittleness(ranking, objective, train, test, [50], wrong=wrong, draws=1)
    before, after = (
        train(kept, 0)(test[0]).argmax(1) == test[1] for kept in (np.arange(N), np.arange(50, N))
    )
    assert before.any()
    assert found.flips[0] == (~after[before]).double().mean()


@pytest.mark.filterwarnings("ignore::ihvp.influence.NotAtOptimum")
@pytest.mark.parametrize("kind", [ihvp.KFAC, ihvp.EKFAC])
@pytest.mark.parametrize("solver", [None, ihvp.CG(rtol=1e-12)])
def test_a_path_by_kronecker_factors_is_that_of_separate_runs(problem, outcomes, kind, solver, monkeypatch):
    """In the factors' basis; for another solver gradients are formed."""
    objective, test, _ = problem
    operator, predicted = kind(objective), []
    original = dampings.__globals__["agreement"]
    monkeypatch.setitem(
        dampings.__globals__,
        "agreement",
        lambda what, rises, *more, **named: predicted.append(rises) or original(what, rises, *more, **named),
    )
    formed = []
    if solver is None:
        monkeypatch.setitem(dampings.__globals__, "gradients", lambda *_: formed.append(1))
    path = dampings(objective, outcomes, test, DAMPINGS, operator, solver=solver)
    assert not formed
    for damping, rises in zip(path.dampings, predicted, strict=True):
        influence = ihvp.Influence(objective, damping, solver, curvature=operator)
        expected = np.asarray(influence.scores(test)) @ ~outcomes.subsets.T
        assert_allclose(rises, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())


def test_training_the_objectives_own_model_is_named(problem):
    objective, test, _ = problem
    own = ihvp.Objective(loss, network(), objective.batches.data, predict=predict)
    x, y = objective.batches.data
    with pytest.raises(ParameterError, match="train_fn changed the parameters of the objective"):
        retrain(own, lambda kept, seed: trained(own.params, x[kept], y[kept]), test, 2)
