"""A path of dampings against one run of influence for each of them."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import ihvp
from ihvp.errors import IndefiniteCurvature, InvalidOption
from ihvp.evaluate import Agreement, DampingPath, dampings, lds, retrain

from .conftest import TESTS, N

CG = ihvp.CG(rtol=1e-12)
DAMPINGS = [10.0, 0.1, 1e-4]


@pytest.fixture(scope="module")
def curvature(problem):
    x, _ = problem.data
    return ihvp.Dense(x.T @ x / N)


@pytest.fixture(scope="module")
def outcomes(problem):
    return retrain(problem.objective, problem.train, problem.test, 30)


@pytest.mark.parametrize("solver", [CG, ihvp.Direct()])
def test_a_path_is_that_of_separate_runs(problem, curvature, outcomes, solver, monkeypatch):
    predicted = []

    def keep(what, rises, *options, **more):
        predicted.append(rises)
        return original(what, rises, *options, **more)

    original = ihvp.evaluate.dampings.__globals__["agreement"]
    monkeypatch.setitem(ihvp.evaluate.dampings.__globals__, "agreement", keep)
    path = dampings(problem.objective, outcomes, problem.test, DAMPINGS, curvature, solver=solver)
    assert path.dampings.tolist() == sorted(DAMPINGS)
    for damping, rises, found in zip(path.dampings, predicted, path.agreements, strict=True):
        influence = ihvp.Influence(problem.objective, damping, solver, curvature=curvature)
        scores = np.asarray(influence.scores(problem.test))
        expected = scores @ ~outcomes.subsets.T
        assert_allclose(rises, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())
        assert_array_equal(found.per_test, lds(scores, outcomes).per_test)


def test_blocks_of_test_and_training_points_make_no_difference(problem, curvature, outcomes, monkeypatch):
    whole = dampings(problem.objective, outcomes, problem.test, DAMPINGS, curvature, solver=CG)
    monkeypatch.setattr("ihvp.influence.blocks.NUMBERS", 64)
    parts = dampings(problem.objective, outcomes, problem.test, DAMPINGS, curvature, solver=CG)
    assert_allclose(parts.per_test, whole.per_test, rtol=1e-12)


def test_other_losses_may_be_asked_about(problem, curvature, sizes):
    outcomes = retrain(problem.objective, problem.train, problem.test, 30, sizes)
    path = dampings(problem.objective, outcomes, problem.test, [0.01], curvature, sizes, solver=CG)
    influence = ihvp.Influence(problem.objective, 0.01, CG, curvature=curvature)
    assert_array_equal(path.per_test[0], lds(influence, outcomes, problem.test, sizes).per_test)
    assert path.value[0] > 0.7


def test_all_dampings_take_the_products_of_the_hardest(problem, curvature, outcomes, monkeypatch):
    counts = []
    original = ihvp.Dense.apply
    monkeypatch.setattr(ihvp.Dense, "apply", lambda self, v: counts.append(v.shape) or original(self, v))
    dampings(problem.objective, outcomes, problem.test, [1e-4], curvature, solver=CG)
    one = len(counts)
    dampings(problem.objective, outcomes, problem.test, np.geomspace(1e-4, 10, 12), curvature, solver=CG)
    # A check of each solution is one product of its own.
    assert len(counts) - one <= one + 2 * 12


def test_weights_of_the_examples_are_followed(problem, curvature):
    def weights(batch):
        return np.abs(batch[1]) + 0.1

    def weighed(w, batch):
        x, y = batch
        return np.average((x @ w - y) ** 2, weights=weights(batch)) / 2

    def gradient(w, batch):
        (x, y), share = batch, weights(batch)
        return x.T @ (share * (x @ w - y)) / share.sum()

    x, y = problem.data
    share = weights(problem.data)
    optimum = np.linalg.solve((x.T * share) @ x, x.T @ (share * y))
    objective = ihvp.Objective(weighed, optimum, problem.data, grad=gradient, weights=weights)
    outcomes = retrain(objective, problem.train, problem.test, 30)
    assert_allclose(outcomes.losses[0], problem.losses(outcomes.subsets[0]), rtol=1e-12)
    path = dampings(objective, outcomes, problem.test, [0.1], curvature, solver=CG)
    influence = ihvp.Influence(objective, 0.1, CG, curvature=curvature)
    assert_array_equal(path.per_test[0], lds(influence, outcomes, problem.test).per_test)


def path_of(values, spread=0.01):
    """LDS with the same errors over trainings, which cancel in differences, and some of their own."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(50, 1))
    own = spread * rng.normal(size=(len(values), 50, 2))
    each = [
        Agreement("LDS", np.full(2, value), value + 0.1 * shared + noise)
        for value, noise in zip(values, own, strict=True)
    ]
    return DampingPath(np.geomspace(1e-4, 1e-1, 4), each)


@pytest.mark.parametrize(
    ("values", "best", "chosen"),
    [
        ([0.42, 0.565, 0.48, 0.1], 1, 1),
        ([0.42, 0.565, 0.562, 0.1], 1, 2),
        ([0.5, 0.4, 0.3, 0.2], 0, 0),
        ([0.2, 0.3, 0.4, 0.5], 3, 3),
    ],
)
def test_the_largest_damping_within_a_standard_error_of_the_difference_is_chosen(values, best, chosen):
    path = path_of(values)
    # The errors of each would let any damping pass.
    assert path.standard_error.min() > 0.08
    assert (path.best, path.damping) == (path.dampings[best], path.dampings[chosen])


def test_a_path_is_a_table_and_a_picture():
    pytest.importorskip("pandas")
    path = path_of([0.42, 0.565, 0.48, 0.1])
    assert path.to_pandas()["lds"].tolist() == path.value.tolist()
    assert "damping 0.001: LDS 0.565 ± " in str(path)
    assert str(path).endswith("best: 0.001; within a standard error of it up to 0.001")
    ax = path.plot(label="the Hessian")
    assert_array_equal(ax.lines[0].get_ydata(), path.value)
    ax.figure.clear()


@pytest.mark.parametrize("values", [[], 0.1, [0.1, 0.1], [-1.0], [np.nan], ["a"], [[0.1]], None])
def test_what_is_no_path_is_refused(problem, outcomes, values):
    with pytest.raises(InvalidOption, match="dampings"):
        dampings(problem.objective, outcomes, problem.test, values)


def test_outcomes_of_other_data_are_refused(problem, outcomes, curvature):
    x, y = problem.test
    with pytest.raises(InvalidOption, match=f"the {TESTS} test points of the outcomes"):
        dampings(problem.objective, outcomes, (x[:2], y[:2]), [0.1], curvature)
    fewer = problem.objective.on((problem.data[0][:10], problem.data[1][:10]))
    with pytest.raises(InvalidOption, match="subsets"):
        dampings(fewer, outcomes, problem.test, [0.1])
    with pytest.raises(InvalidOption, match=r"ihvp\.evaluate\.Outcomes"):
        dampings(problem.objective, None, problem.test, [0.1])


def test_a_curvature_that_no_damping_makes_definite_is_named(problem, outcomes):
    with pytest.raises(IndefiniteCurvature):
        dampings(problem.objective, outcomes, problem.test, [0.1, 5.0], ihvp.Dense(-np.eye(4)), solver=CG)
