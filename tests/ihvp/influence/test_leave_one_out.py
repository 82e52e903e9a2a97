"""Retraining beside prediction, on least squares, whose optimum without an example has a closed form."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from numpy.testing import assert_allclose, assert_array_equal

import ihvp
from ihvp.backend import GradientFunction
from ihvp.errors import InvalidOption, NonFinite, PackageNotInstalled, ParameterError
from ihvp.influence import Correlation, LeaveOneOut

N, P = 40, 3


class Regression:
    """Least squares over random data."""

    def __init__(self):
        generator = np.random.default_rng(1)
        self.x = generator.normal(size=(N, P))
        self.y = self.x @ np.ones(P) + generator.normal(size=N)
        self.test = generator.normal(size=(5, P)), generator.normal(size=5)
        self.w = self.train(np.array([], dtype=int), None)

    def train(self, removed, start):
        x, y = np.delete(self.x, removed, axis=0), np.delete(self.y, removed)
        return np.linalg.lstsq(x, y)[0]

    @staticmethod
    def loss(w, batch):
        x, y = batch
        return ((x @ w - y) ** 2).mean() / 2

    @staticmethod
    def gradient(w, batch):
        x, y = batch
        return x.T @ (x @ w - y) / len(y)

    def objective(self):
        return ihvp.Objective(self.loss, self.w, (self.x, self.y), grad=self.gradient)


@pytest.fixture(scope="module")
def regression():
    return Regression()


def removals_of(predicted, actual):
    groups = [np.array([i]) for i in range(len(predicted))]
    return LeaveOneOut(groups, np.asarray(predicted, float), np.asarray(actual, float))


@pytest.fixture
def noisy():
    generator = np.random.default_rng(3)
    x = generator.normal(size=60)
    return removals_of(x, x + generator.normal(size=60))


def test_actual_changes_are_those_of_the_closed_form(regression):
    found = ihvp.leave_one_out(regression.objective(), regression.train, [3, 8], regression.test)
    before = regression.loss(regression.w, regression.test)
    expected = [regression.loss(regression.train([i], None), regression.test) - before for i in (3, 8)]
    assert_allclose(found.actual, expected, rtol=1e-12)


def test_predictions_are_the_mean_scores_of_the_test_points(regression):
    objective = regression.objective()
    found = ihvp.leave_one_out(objective, regression.train, [3, 8], regression.test)
    scores = np.asarray(ihvp.Influence(objective).scores(regression.test))
    assert_allclose(found.predicted, scores[:, [3, 8]].mean(axis=0), rtol=1e-6)


def test_a_newton_step_is_exact_for_the_parameters_of_a_quadratic_loss(regression):
    """A linear question about the parameters then leaves nothing to approximate."""
    question = GradientFunction(
        lambda w, batch: batch[0].sum(axis=0) / len(batch[0]), lambda w, b: (b[0] @ w).mean()
    )
    found = ihvp.leave_one_out(
        regression.objective(),
        regression.train,
        range(10),
        regression.test,
        question,
        solver=ihvp.CG(rtol=1e-8),
        second_order=True,
    )
    assert_allclose(found.predicted, found.actual, rtol=1e-6, atol=1e-8)


def test_groups_and_single_examples_may_be_mixed(regression):
    found = ihvp.leave_one_out(regression.objective(), regression.train, [3, [5, 6, 7]], regression.test)
    assert [group.tolist() for group in found.groups] == [[3], [5, 6, 7]]
    assert found.to_pandas()["removed"].tolist() == [3, [5, 6, 7]]


def test_several_processes_find_the_same(regression):
    alone, together = (
        ihvp.leave_one_out(regression.objective(), regression.train, range(6), regression.test, n_jobs=n)
        for n in (1, 2)
    )
    assert_array_equal(together.actual, alone.actual)


def test_training_in_place_leaves_the_objective_as_it_was(regression):
    def train(removed, start):
        start[:] = regression.train(removed, None)
        return start

    objective = regression.objective()
    before = objective.params.copy()
    ihvp.leave_one_out(objective, train, [0, 1], regression.test)
    assert_array_equal(objective.params, before)


def test_training_starts_from_the_optimum(regression):
    starts = []

    def train(removed, start):
        starts.append(start.copy())
        return start

    found = ihvp.leave_one_out(regression.objective(), train, [0], regression.test)
    assert_array_equal(starts, [regression.w])
    assert_array_equal(found.actual, [0.0])


def test_a_function_that_returns_nothing_is_named(regression):
    with pytest.raises(InvalidOption, match="returns the parameters; it returned None"):
        ihvp.leave_one_out(regression.objective(), lambda removed, start: None, [0], regression.test)


def test_parameters_of_another_size_are_refused(regression):
    with pytest.raises(ParameterError, match=r"expected numpy.ndarray of shape \(3,\)"):
        ihvp.leave_one_out(regression.objective(), lambda removed, start: np.zeros(4), [0], regression.test)


@pytest.mark.parametrize(
    ("indices", "text"), [([N], "from 0 to 39"), ([0.5], "from 0 to 39"), ([], "indices")]
)
def test_indices_outside_the_training_data_are_refused(regression, indices, text):
    with pytest.raises(InvalidOption, match=text):
        ihvp.leave_one_out(regression.objective(), regression.train, indices, regression.test)


@pytest.mark.parametrize("n_jobs", [0, 1.5, "2"])
def test_a_number_of_processes_that_is_none_is_refused(regression, n_jobs):
    with pytest.raises(InvalidOption, match="n_jobs"):
        ihvp.leave_one_out(regression.objective(), regression.train, [0], regression.test, n_jobs=n_jobs)


@pytest.mark.parametrize(("objective", "train"), [(3, len), (None, None)])
def test_what_is_no_objective_or_function_is_refused(objective, train):
    with pytest.raises(InvalidOption, match="expected"):
        ihvp.leave_one_out(objective, train, [0], None)


def test_a_loss_known_by_its_gradient_alone_cannot_be_compared(regression):
    objective = ihvp.Objective(
        params=regression.w, data=(regression.x, regression.y), grad=regression.gradient
    )
    with pytest.raises(InvalidOption, match="a loss beside grad"):
        ihvp.leave_one_out(objective, regression.train, [0], regression.test)


def test_an_unknown_value_is_found_before_any_solve(regression, monkeypatch):
    objective = ihvp.Objective(
        params=regression.w, data=(regression.x, regression.y), grad=regression.gradient
    )
    monkeypatch.setattr(ihvp.Influence, "group", lambda *args, **kwargs: pytest.fail("work was done"))
    with pytest.raises(InvalidOption, match="a loss beside grad"):
        ihvp.leave_one_out(objective, regression.train, [0], regression.test)


@pytest.mark.parametrize("indices", [5, None, 1.5])
def test_indices_that_are_no_sequence_are_refused(regression, indices):
    with pytest.raises(InvalidOption, match=r"indices is .*; expected a sequence of example numbers"):
        ihvp.leave_one_out(regression.objective(), regression.train, indices, regression.test)


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_those_of_train_fn(regression, value, n_jobs):
    with pytest.raises(ParameterError, match=r"train_fn returned .*NaN or infinite.* removal of \[3 4\]"):
        ihvp.leave_one_out(
            regression.objective(),
            lambda removed, start: start * value,
            [[3, 4]],
            regression.test,
            n_jobs=n_jobs,
        )


def test_a_loss_that_overflows_after_training_names_it(regression):
    with (
        np.errstate(over="ignore"),
        pytest.raises(NonFinite, match=r"what train_fn returned after the removal of \[3\]"),
    ):
        ihvp.leave_one_out(regression.objective(), lambda removed, start: start * 1e200, [3], regression.test)


def test_a_missing_joblib_is_named(regression, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "joblib", None)
    with pytest.raises(PackageNotInstalled, match=r"ihvp\[influence\]"):
        ihvp.leave_one_out(regression.objective(), regression.train, [0], regression.test, n_jobs=2)


def test_pearson_and_its_interval_are_scipys(noisy):
    expected = scipy.stats.pearsonr(noisy.predicted, noisy.actual)
    interval = expected.confidence_interval(0.95)
    assert_allclose(noisy.pearson.value, expected.statistic, rtol=1e-12)
    assert_allclose((noisy.pearson.low, noisy.pearson.high), (interval.low, interval.high), rtol=1e-10)


def test_spearman_is_scipys_ties_included(noisy):
    rounded = removals_of(noisy.predicted.round(), noisy.actual.round())
    expected = scipy.stats.spearmanr(rounded.predicted, rounded.actual).statistic
    assert_allclose(rounded.spearman.value, expected, rtol=1e-12)


def test_spearmans_interval_covers_the_true_value_as_often_as_it_says():
    generator = np.random.default_rng(0)
    correlation = 0.7
    true = 6 / np.pi * np.arcsin(correlation / 2)  # of a normal pair
    pairs = generator.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], size=(1000, 50))
    found = [removals_of(*pair.T).spearman for pair in pairs]
    assert 0.93 <= np.mean([c.low <= true <= c.high for c in found]) <= 0.97


def test_slope_is_that_of_scipys_line(noisy):
    assert_allclose(noisy.slope, scipy.stats.linregress(noisy.predicted, noisy.actual).slope, rtol=1e-12)


def test_exact_agreement_has_no_width():
    pearson = removals_of([1, 2, 3, 4], [2, 4, 6, 8]).pearson
    assert_allclose((pearson.value, pearson.low, pearson.high), 1.0, rtol=1e-12)


@pytest.mark.parametrize("size", [2, 3])
def test_few_pairs_say_nothing_of_the_interval(size):
    pearson = removals_of(range(size), [0, 2, 1][:size]).pearson
    assert (pearson.low, pearson.high) == (-1.0, 1.0)


@pytest.mark.parametrize("values", [[1.0] * 5, [1.0]])
def test_what_does_not_vary_has_no_correlation(values):
    found = removals_of(values, range(len(values)))
    assert np.isnan([found.pearson.value, found.spearman.value, found.slope]).all()


def test_a_correlation_is_printed_with_its_interval():
    assert str(Correlation(0.99871, 0.99, 1.0)) == "0.9987 (0.9900 to 1.0000)"
