"""The running top k against the sorted scores."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_array_equal

import ihvp
from ihvp.influence import Scores, blocks
from ihvp.influence.top_k import Running

# Few values, so that many are equal.
TIED = arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 30)), elements=st.integers(-2, 2))
KEYS = {"helpful": lambda s: -s, "harmful": lambda s: s, "both": lambda s: -np.abs(s)}


def tiles(scores, row_cuts, column_cuts):
    rows, columns = (
        sorted({0, *(cut for cut in cuts if cut < length), length})
        for cuts, length in zip((row_cuts, column_cuts), scores.shape, strict=True)
    )
    for a, b in itertools.pairwise(rows):
        for c, d in itertools.pairwise(columns):
            yield a, c, scores[a:b, c:d]


@pytest.mark.parametrize("which", KEYS)
@given(TIED, st.data(), st.lists(st.integers(1, 3), max_size=2), st.lists(st.integers(1, 29), max_size=6))
def test_any_tiling_gives_the_sorted_scores(which, scores, data, row_cuts, column_cuts):
    k = data.draw(st.integers(1, scores.shape[1]))
    running = Running(len(scores), k, which, np.dtype(float))
    for row, column, tile in tiles(scores, row_cuts, column_cuts):
        running.add(row, column, tile)
    expected = np.argsort(KEYS[which](scores), axis=1, kind="stable")[:, :k]
    found = running.result(0.0)
    assert_array_equal(found.indices, expected)
    assert_array_equal(found.scores, np.take_along_axis(scores, expected, axis=1))
    assert_array_equal(Scores(scores, ("test", "train"), 0.0).top_k(k, which).indices, expected)


@pytest.mark.parametrize("which", KEYS)
@pytest.mark.parametrize("k", [1, 4, 23])
def test_top_k_is_the_top_of_the_scores(small, monkeypatch, which, k):
    monkeypatch.setattr(blocks, "NUMBERS", 12 * 3)
    influence = small.influence()
    scores = np.asarray(influence.scores(small.test))
    found = influence.top_k(small.test, k, which=which)
    assert_array_equal(found.indices, np.argsort(KEYS[which](scores), axis=1, kind="stable")[:, :k])
    assert_array_equal(found.scores, np.take_along_axis(scores, found.indices, axis=1))


def test_equal_examples_stand_in_the_order_of_their_numbers():
    # With one parameter a score is one product, whose rounding is the same in every place of a tile.
    x = np.random.default_rng(0).normal(size=(23, 1))
    objective = ihvp.Objective(
        params=np.concatenate([x, x]).mean(axis=0),
        data=np.concatenate([x, x]),
        grad=lambda w, batch: w - batch.mean(axis=0),
    )
    found = ihvp.Influence(objective, solver=ihvp.Direct()).top_k(x[:5], 46)
    place = np.argsort(found.indices, axis=1)
    assert np.all(place[:, :23] < place[:, 23:])


@pytest.fixture
def peak(small, monkeypatch):
    """Bytes at the peak of a call about 64 test points, over data that are made as they are asked for."""
    monkeypatch.setattr(blocks, "NUMBERS", 1 << 12)

    class Stream:
        def __init__(self, count):
            self.count = count

        def __iter__(self):
            for seed in range(self.count // 50):
                rng = np.random.default_rng(seed)
                yield rng.normal(size=(50, 4)), rng.integers(0, 3, 50)

    test = next(iter(Stream(100)))

    def measure(ask, n_train):
        tracemalloc.start()
        try:
            ask(small.influence(), test, Stream(n_train))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure


def test_peak_memory_does_not_grow_with_the_training_data(peak):
    def ask(influence, test, train):
        influence.top_k(test, 3, train)

    peak(ask, 1_000)
    little, much = peak(ask, 1_000), peak(ask, 20_000)
    assert much <= 1.1 * little
    assert much < 50 * 20_000 * 8 / 10


def test_the_measure_of_memory_sees_scores_that_are_held(peak):
    assert peak(lambda influence, test, train: influence.scores(test, train), 20_000) > 50 * 20_000 * 8
