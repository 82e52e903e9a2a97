"""Results as labelled arrays."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ihvp.errors import InvalidOption, PackageNotInstalled
from ihvp.influence import Scores, TopK

VALUES = np.array([[0.1, -0.3, 0.2, -0.3], [0.0, 0.0, 1.0, -2.0]])


@pytest.fixture
def scores():
    return Scores(VALUES.copy(), ("test", "train"), 2e-7)


def test_it_is_an_array_where_numpy_takes_one(scores):
    assert_array_equal(np.asarray(scores), VALUES)
    assert np.asarray(scores, dtype=np.float32).dtype == np.float32
    assert np.array(scores) is not scores.values
    assert np.asarray(scores) is scores.values
    assert_array_equal(np.concatenate([scores, scores]), np.concatenate([VALUES, VALUES]))
    assert np.mean(scores) == VALUES.mean()
    assert_array_equal(np.argsort(scores, axis=1), np.argsort(VALUES, axis=1))


def test_ufuncs_and_arithmetic_give_arrays(scores):
    for found, expected in (
        (np.abs(scores), np.abs(VALUES)),
        (np.add.reduce(scores), VALUES.sum(axis=0)),
        (2 * scores - 1, 2 * VALUES - 1),
        (VALUES - scores, 0 * VALUES),
        (-scores, -VALUES),
        (scores > 0, VALUES > 0),
        (scores == scores, np.full((2, 4), True)),
        (scores @ np.ones(4), VALUES @ np.ones(4)),
    ):
        assert type(found) is np.ndarray
        assert_array_equal(found, expected)


def test_they_do_not_change_in_place(scores):
    with pytest.raises(TypeError):
        scores += 1
    with pytest.raises(TypeError):
        np.add(VALUES, 1, out=scores)
    assert_array_equal(scores.values, VALUES)


def test_indexing_and_iterating_are_those_of_the_values(scores):
    assert scores[0, 1] == -0.3
    assert_array_equal(scores[:, 1:3], VALUES[:, 1:3])
    assert_array_equal(list(scores), VALUES)
    assert (len(scores), scores.shape, scores.ndim, scores.dtype) == (2, (2, 4), 2, np.float64)


def test_ranks_keep_equal_scores_in_order(scores):
    assert_array_equal(scores.most_harmful(2), [[1, 3], [3, 0]])
    assert_array_equal(scores.most_helpful(4), [[2, 0, 1, 3], [2, 0, 1, 3]])
    assert_array_equal(scores.top_k(2).indices, [[1, 3], [3, 2]])


def test_ranks_of_one_axis(scores):
    single = Scores(VALUES[0], ("train",), 0.0)
    assert_array_equal(single.most_helpful(2), [2, 0])
    assert_array_equal(single.top_k(1, "helpful").indices, [[2]])


@pytest.mark.parametrize("k", [0, 5, -1, 1.0, True, None])
@pytest.mark.parametrize("method", ["most_helpful", "most_harmful", "top_k"])
def test_k_is_a_number_of_examples(scores, method, k):
    with pytest.raises(InvalidOption, match=r"k is .*; expected an integer from 1 to 4, .*train"):
        getattr(scores, method)(k)


def test_another_ranking_is_refused(scores):
    with pytest.raises(InvalidOption, match=r"which is 'best'; expected 'helpful', 'harmful' or 'both'"):
        scores.top_k(1, "best")


def test_to_pandas_names_the_axes(scores):
    frame = scores.to_pandas()
    assert (frame.index.name, frame.columns.name) == ("test", "train")
    assert_array_equal(frame.to_numpy(), VALUES)
    series = Scores(VALUES[0], ("train",), 0.0).to_pandas()
    assert (series.index.name, series.name) == ("train", "score")


def test_top_k_to_pandas_has_a_row_for_each_rank(scores):
    frame = scores.top_k(2).to_pandas()
    assert list(frame.columns) == ["test", "rank", "train", "score"]
    assert frame.to_numpy().tolist() == [[0, 1, 1, -0.3], [0, 2, 3, -0.3], [1, 1, 3, -2.0], [1, 2, 2, 1.0]]


@pytest.mark.parametrize("make", [lambda s: s, lambda s: s.top_k(1)], ids=["Scores", "TopK"])
def test_missing_pandas_is_named(scores, monkeypatch, make):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(PackageNotInstalled, match="pip install pandas"):
        make(scores).to_pandas()


def test_they_say_what_they_are(scores):
    assert repr(scores) == "Scores(test: 2, train: 4; float64, residual 2.0e-07)"
    assert repr(scores.top_k(3)) == "TopK(3 most both, test: 2; residual 2.0e-07)"
    assert isinstance(scores.top_k(3), TopK)
