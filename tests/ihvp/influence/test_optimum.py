"""Influence away from an optimum: a warning, once, at the caller's line."""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest

import ihvp
from ihvp.influence import optimum
from ihvp.influence.optimum import NotAtOptimum

CALLS = {
    "scores": lambda influence, test: influence.scores(test),
    "top_k": lambda influence, test: influence.top_k(test, 2),
    "self_influence": lambda influence, test: influence.self_influence(),
    "group": lambda influence, test: influence.group([1], test),
    "second order": lambda influence, test: influence.group([1], test, second_order=True),
    "of_new_points": lambda influence, test: influence.of_new_points(test, test),
    "inverse_products": lambda influence, test: influence.inverse_products(test),
}


def away(small):
    return ihvp.Influence(small.objective(params=3 * small.weights), damping=0.5)


@pytest.mark.parametrize("name", CALLS)
def test_the_warning_points_at_the_callers_line_and_comes_once(small, name):
    influence, call = away(small), CALLS[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(influence, small.test)
        call(influence, small.test)
    assert [warning.category for warning in caught] == [NotAtOptimum]
    assert caught[0].filename == __file__
    assert caught[0].lineno == inspect.getsourcelines(call)[1]


def test_the_warning_has_the_norm_of_the_gradient(small):
    norm = np.linalg.norm(small.loss.gradient(3 * small.weights, small.train))
    with pytest.warns(NotAtOptimum, match=f"its gradient has norm {norm:.1e}"):
        away(small).scores(small.test)


def test_products_from_a_file_warn_as_well(small, tmp_path):
    with pytest.warns(NotAtOptimum):
        products = away(small).inverse_products(small.test)
    with pytest.warns(NotAtOptimum):
        away(small).scores(products)


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_said_at_an_optimum(small, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CALLS[name](small.influence(), small.test)


def test_nothing_is_said_near_an_optimum_in_float32(small):
    train = small.train[0].astype(np.float32), small.train[1]
    objective = small.objective(train, params=small.weights.astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ihvp.Influence(objective).self_influence()


def test_large_gradients_are_few_at_once(small, monkeypatch):
    held, gradients = [], optimum.gradients
    monkeypatch.setattr(optimum, "rows_at_once", lambda num_params: 3)

    def counted(objective, block, what):
        held.append(block.count)
        return gradients(objective, block, what)

    monkeypatch.setattr(optimum, "gradients", counted)
    objective = small.objective(params=3 * small.weights)
    rows = np.linalg.norm(np.stack([objective.on(one).gradient() for one in _singles(small)]), axis=1)
    with pytest.warns(NotAtOptimum, match=f"single examples about {np.mean(rows**2) ** 0.5:.1e}"):
        ihvp.Influence(objective, damping=0.5).scores(small.test)
    assert max(held) <= 3
    assert sum(held) == 18


def _singles(small):
    return [tuple(part[i : i + 1] for part in small.train) for i in range(18)]
