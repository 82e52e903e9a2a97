"""Subsets have one form, and what is none is refused."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ihvp.errors import InvalidOption
from ihvp.evaluate import Outcomes, all_but, random_subsets


def test_subsets_are_of_one_size_differ_and_follow_the_seed():
    one, same, other = (random_subsets(50, 20, 0.3, seed) for seed in (0, 0, 1))
    assert one.shape == (20, 50)
    assert_array_equal(one.sum(axis=1), 15)
    assert len(np.unique(one, axis=0)) == 20
    assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_examples_are_drawn_equally_often():
    assert np.abs(random_subsets(10, 4000).mean(axis=0) - 0.5).max() < 0.04


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_a_subset_is_never_empty_nor_all(fraction):
    assert 0 < random_subsets(10, 1, fraction).sum() < 10


@pytest.mark.parametrize("removed", [[[0, 2]], [0, 2]])
def test_single_examples_and_groups_are_left_out(removed):
    expected = [np.setdiff1d(np.arange(4), group).tolist() for group in removed]
    assert [np.flatnonzero(row).tolist() for row in all_but(4, removed)] == expected


@pytest.mark.parametrize("options", [(1,), (10, 0), (10, 5, 1.0), (10, 5, 0), (10, 5, 0.5, -1), (10.0,)])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InvalidOption, match="expected"):
        random_subsets(*options)


WRONG = {
    "out of range": [[0, 4]],
    "negative": [[-1, 2]],
    "twice": [[1, 1]],
    "empty": [[]],
    "fractions": [[0.5]],
    "none": [],
    "a number": 3,
    "another width": np.ones((2, 3), bool),
    "empty mask": np.zeros((2, 4), bool),
    "nested": [[[0, 1]]],
    "ragged": [[0, [1]]],
}


@pytest.mark.parametrize("subsets", WRONG.values(), ids=WRONG)
def test_what_is_no_subset_is_refused(subsets):
    with pytest.raises(InvalidOption, match=r"subsets is .*expected"):
        Outcomes(subsets, np.ones((1, 2)), num_examples=4)


@pytest.mark.parametrize("removed", [[4], [[0, 1, 2, 3], [-1]], 3, [[]]])
def test_what_cannot_be_left_out_is_refused(removed):
    with pytest.raises(InvalidOption, match=r"removed is .*expected"):
        all_but(4, removed)


def test_outcomes_of_numbers_are_those_of_booleans():
    masks = random_subsets(8, 3)
    losses = np.arange(6).reshape(3, 2)
    numbers = Outcomes([np.flatnonzero(mask) for mask in masks], losses.tolist(), num_examples=8)
    assert_array_equal(numbers.subsets, Outcomes(masks, losses).subsets)
    assert numbers.losses.dtype == np.float64
    assert repr(numbers) == "Outcomes(subsets: 3, train: 8, test: 2)"


@pytest.mark.parametrize(
    "losses", [np.ones(3), np.ones((2, 4)), np.ones((3, 0)), [["a"]] * 3, [[1.0], [2.0], [np.nan]]]
)
def test_losses_that_do_not_fit_are_refused(losses):
    with pytest.raises(InvalidOption, match="losses is"):
        Outcomes(random_subsets(8, 3), losses)


def test_numbers_need_to_know_of_how_many():
    with pytest.raises(InvalidOption, match="num_examples=…"):
        Outcomes([[0, 1]], [[1.0]])
