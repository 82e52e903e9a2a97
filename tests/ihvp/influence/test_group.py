"""Removal of groups: sums of scores, Newton steps, and real retraining."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

import ihvp
from ihvp.data import Examples
from ihvp.errors import InvalidOption
from ihvp.influence import blocks
from ihvp.influence.group import Removal

from .conftest import CrossEntropy, Exact

GROUPS = [[0], [3, 1, 22], [4, 5, 6, 7, 8]]


def test_the_first_order_is_the_sum_of_scores(small):
    influence = small.influence()
    scores = np.asarray(influence.scores(small.test))
    found = influence.group(GROUPS, small.test)
    assert found.axes == ("test", "group")
    assert_allclose(found, np.stack([scores[:, group].sum(axis=1) for group in GROUPS], axis=1), atol=1e-10)


@pytest.mark.parametrize("second_order", [False, True])
def test_one_group_has_one_axis(small, second_order):
    influence = small.influence()
    one = influence.group(np.array([3, 1, 22]), small.test, second_order=second_order)
    several = influence.group(GROUPS, small.test, second_order=second_order)
    assert one.axes == ("test",)
    assert_allclose(one, np.asarray(several)[:, 1], rtol=1e-9)


def test_the_second_order_is_a_newton_step_on_what_remains(small):
    found = small.influence().group(GROUPS, small.test, second_order=True)
    slopes = small.loss.rows(small.weights, small.test)
    for column, group in zip(np.asarray(found).T, GROUPS, strict=True):
        part = tuple(array[group] for array in small.train)
        remaining = small.hessian - len(group) / 23 * CrossEntropy().hessian(small.weights, part)
        step = np.linalg.solve(remaining, CrossEntropy().rows(small.weights, part).sum(axis=0) / 23)
        assert_allclose(column, slopes @ step, rtol=1e-9)


class LeastSquares:
    """``mean ½ (xᵀw − y)²``: a quadratic."""

    def __call__(self, w, batch):
        x, y = batch
        return np.mean((x @ w - y) ** 2) / 2

    def rows(self, w, batch):
        x, y = batch
        return x * (x @ w - y)[:, None]

    def gradient(self, w, batch):
        return self.rows(w, batch).mean(axis=0)

    def product(self, w, batch, v):
        x = batch[0]
        return x.T @ (x @ v) / len(x)


def test_the_second_order_is_exact_on_quadratics():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)), rng.normal(size=20)
    w = np.linalg.lstsq(x, y, rcond=None)[0]
    objective = ihvp.Objective(LeastSquares(), w, (x, y), backend=Exact())
    influence = ihvp.Influence(objective, solver=ihvp.CG(rtol=1e-13))
    # Where the test loss is linear in the weights, all of its change is first order: xᵀw with y = xᵀw − 1.
    points = rng.normal(size=(4, 3))
    found = influence.group(GROUPS[1][:2], (points, points @ w - 1), second_order=True)
    keep = np.setdiff1d(np.arange(20), GROUPS[1][:2])
    retrained = np.linalg.lstsq(x[keep], y[keep], rcond=None)[0]
    assert_allclose(found, points @ (retrained - w), rtol=1e-10)


@pytest.mark.parametrize(("second_order", "count"), [(False, 50), (True, 8)])
def test_predictions_for_groups_of_fifty_agree_with_retraining(digits, second_order, count):
    rng = np.random.default_rng(0)
    groups = [rng.choice(1500, 50, replace=False) for _ in range(count)]
    wrong = np.flatnonzero((digits.test[0] @ digits.weights).argmax(axis=1) != digits.test[1])[:1]
    point = tuple(array[wrong] for array in digits.test)
    predicted = digits.influence(solver=ihvp.Direct()).group(
        groups, point, CrossEntropy(), second_order=second_order
    )[0]
    before = CrossEntropy().values(digits.weights, point)
    actual = [CrossEntropy().values(digits.retrained(group), point) - before for group in groups]
    r = np.corrcoef(predicted, np.ravel(actual))[0, 1]
    slope = np.polyfit(predicted, np.ravel(actual), 1)[0]
    assert r >= (0.999 if second_order else 0.95)
    assert abs(slope - 1) <= (0.02 if second_order else 0.15)


@pytest.mark.parametrize(
    "indices",
    [[], [[]], [[1], []], [23], [-1], [1, 1], [0.5], [True, False], 3, [[[1]]], ["a"], [[0], 1]],
    ids=str,
)
def test_what_is_no_group_of_examples_is_refused(small, indices):
    with pytest.raises(InvalidOption, match="expected different integers from 0 to 22"):
        small.influence().group(indices, small.test)


def test_nothing_would_remain_without_all_examples(small):
    with pytest.raises(InvalidOption, match="fewer than all training examples"):
        small.influence().group(range(23), small.test)


def test_any_sequence_is_a_group(small):
    influence = small.influence()
    expected = influence.group([4, 5, 6], small.test)
    for indices in (range(4, 7), (4, 5, 6), np.array([4, 5, 6]), iter([4, 5, 6])):
        assert_allclose(influence.group(indices, small.test), expected, rtol=1e-12)


def test_the_second_order_needs_a_curvature_that_knows_its_examples(small):
    low = ihvp.LowRank.of(*np.linalg.eigh(small.hessian))
    with pytest.raises(InvalidOption, match=r"second_order.*a curvature that knows its examples"):
        small.influence(curvature=low, solver=ihvp.CG()).group([1], small.test, second_order=True)


def test_strange_test_data_is_refused_before_the_steps(small, monkeypatch):
    monkeypatch.setattr(Removal, "newton_steps", lambda *args: pytest.fail("work was done"))
    with pytest.raises(ihvp.errors.UnequalBatches):
        small.influence().group([1], small.test[0], second_order=True)


class Loader:
    """Batches of four that are made at each pass."""

    def __init__(self, batch):
        self.batch = batch

    def __iter__(self):
        return (tuple(array[i : i + 4] for array in self.batch) for i in range(0, len(self.batch[0]), 4))


@pytest.mark.parametrize("second_order", [False, True])
def test_of_data_in_batches_only_the_examples_of_the_groups_are_held(small, monkeypatch, second_order):
    expected = small.influence().group(GROUPS[:2], small.test, second_order=second_order)
    held, original = [], Examples.of.__func__

    def of(cls, batches):
        held.append(original(cls, batches))
        return held[-1]

    monkeypatch.setattr(Examples, "of", classmethod(of))
    found = small.influence(Loader(small.train)).group(GROUPS[:2], small.test, second_order=second_order)
    assert_allclose(found, expected, rtol=1e-8)
    assert max(examples.count for examples in held) == 4


@pytest.mark.parametrize("data", [lambda train: train, Loader], ids=["memory", "loader"])
@pytest.mark.parametrize("second_order", [False, True])
def test_the_changes_of_many_groups_are_not_held_together(small, monkeypatch, second_order, data):
    influence, groups = small.influence(data(small.train)), [[i, i + 1] for i in range(7)]
    expected = np.asarray(influence.group(groups, small.test, second_order=second_order))
    name, sizes = "newton_steps" if second_order else "gradients", []
    original = getattr(Removal, name)

    def remember(removal, part, *arguments):
        sizes.append(len(part))
        return original(removal, part, *arguments)

    monkeypatch.setattr(Removal, name, remember)
    monkeypatch.setattr(blocks, "NUMBERS", 12 * 3)
    found = influence.group(groups, small.test, second_order=second_order)
    assert_allclose(found, expected, rtol=1e-8, atol=1e-12)
    # A Newton step takes a solve and is made once; gradients are made again for the second block of points.
    assert sizes == ([3, 3, 1] if second_order else [3, 3, 1] * 2)


def test_gradients_of_few_groups_are_made_once_for_all_test_points(small, monkeypatch):
    made, original = [], Removal.gradients
    monkeypatch.setattr(Removal, "gradients", lambda *args: made.append(1) or original(*args))
    monkeypatch.setattr(blocks, "NUMBERS", 12 * 3)
    small.influence().group(GROUPS, small.test)
    assert made == [1]
