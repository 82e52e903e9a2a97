"""Removals of what is said to help, beside the definition written out."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import ihvp
from ihvp.errors import InvalidOption
from ihvp.evaluate import brittleness

from .conftest import TESTS, N


@pytest.fixture(scope="module")
def scores(problem):
    return ihvp.Influence(problem.objective).scores(problem.test)


@pytest.fixture(scope="module")
def found(problem, scores):
    return brittleness(
        scores, problem.objective, problem.train, problem.test, [1, 8], wrong=problem.wrong, draws=2
    )


def test_rises_are_those_of_models_without_each_points_own_top(problem, scores, found):
    before = problem.losses(np.arange(N))
    order = np.argsort(-np.asarray(scores), axis=1)
    for k, rises in zip([1, 8], found.per_test, strict=True):
        for test in range(TESTS):
            after = problem.losses(np.setdiff1d(np.arange(N), order[test, :k]))[test]
            assert_allclose(rises[test], after - before[test], rtol=1e-9, atol=1e-12)


def test_random_removals_do_less(found):
    assert found.value[1] > 5 * abs(found.random_per_test.mean(axis=1)[1])
    assert found.value[1] > found.value[0] > 0


def test_random_removals_are_means_over_their_draws(problem, scores, found):
    generator, before = np.random.default_rng(0), problem.losses(np.arange(N))
    for k, rises in zip([1, 8], found.random_per_test, strict=True):
        drawn = [np.setdiff1d(np.arange(N), generator.permutation(N)[:k]) for _ in range(2)]
        assert_allclose(
            rises, np.mean([problem.losses(kept) - before for kept in drawn], axis=0), rtol=1e-8, atol=1e-12
        )


def test_flips_are_right_predictions_that_became_wrong(problem, scores, found):
    x, y = problem.test

    def wrong(kept):
        return np.sign(x @ problem.train(kept, 0)) != np.sign(y)

    right = ~wrong(np.arange(N))
    order = np.argsort(-np.asarray(scores), axis=1)
    became = [wrong(np.setdiff1d(np.arange(N), order[test, :8]))[test] for test in range(TESTS)]
    assert_allclose(found.flips[1], np.mean(np.array(became)[right]))
    assert "became wrong" in str(found)


def test_a_ranking_does_as_well(problem, scores, found):
    top = scores.top_k(8, which="helpful")
    for ranking in (scores.most_helpful(8), top):
        again = brittleness(ranking, problem.objective, problem.train, problem.test, [8], draws=1)
        assert_array_equal(again.per_test[0], found.per_test[1])
        assert again.flips is None


def test_some_percents_are_removed_where_nothing_is_said(problem, scores, tmp_path):
    found = brittleness(scores, problem.objective, problem.train, problem.test, draws=1, out=tmp_path)
    assert found.ks.tolist() == [1, 2, 4]  # of 40 examples
    again = brittleness(scores, problem.objective, problem.train, problem.test, draws=1, out=tmp_path)
    assert_array_equal(again.per_test, found.per_test)


def test_it_is_a_table_and_a_picture(found):
    pytest.importorskip("pandas")
    table = found.to_pandas()
    assert table["k"].tolist() == [1, 8]
    assert_allclose(table["standard_error"], found.per_test.std(axis=1, ddof=1) / TESTS**0.5)
    ax = found.plot(label="influence")
    found.plot(ax, label="the same")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["at random", "influence", "the same"]
    ax.figure.clear()


@pytest.mark.parametrize(
    ("scores", "options", "text"),
    [
        (np.ones((TESTS, N)), {"ks": [N]}, "fewer than all"),
        (np.ones((TESTS, N)), {"ks": [0]}, "integers from 1"),
        (np.ones((TESTS, N)), {"ks": [0.5]}, "ks"),
        (np.ones((TESTS, N)), {"ks": []}, "ks"),
        (np.ones((TESTS, N)), {"draws": 0}, "draws"),
        (np.ones((TESTS, N)), {"seed": -1}, "seed"),
        (np.ones((TESTS, N)), {"wrong": 3}, "wrong"),
        (np.ones((TESTS, N - 1)), {}, r"expected an array \(6, 40\)"),
        (np.full((TESTS, N), np.nan), {}, "finite"),
        (np.zeros((TESTS, 3), int), {"ks": [4]}, "4 or more"),
        (np.full((TESTS, 3), N), {"ks": [3]}, "numbers from 0 to 39"),
        (np.zeros((TESTS, 3), int), {"ks": [3]}, "different"),
        (
            ihvp.influence.TopK(np.zeros((TESTS, 3), int), np.ones((TESTS, 3)), "both", 0.0),
            {"ks": [3]},
            "helpful",
        ),
    ],
)
def test_what_cannot_be_ranked_or_removed_is_refused(problem, scores, options, text):
    with pytest.raises(InvalidOption, match=text):
        brittleness(scores, problem.objective, lambda *_: pytest.fail("trained"), problem.test, **options)
