"""The order in which mislabelled examples are found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from ihvp.errors import InvalidOption
from ihvp.influence import detection_curve


@given(st.integers(1, 30), st.integers(0, 100))
def test_each_point_is_the_part_found_among_the_highest_scores(count, seed):
    generator = np.random.default_rng(seed)
    scores, wrong = generator.normal(size=count), generator.random(count) < 0.4
    wrong[0] = True
    curve = detection_curve(scores, wrong)
    order = sorted(range(count), key=lambda i: -scores[i])
    for checked in range(count + 1):
        assert curve.found[checked] == pytest.approx(sum(wrong[order[:checked]]) / sum(wrong))


def test_the_curve_goes_from_nothing_to_everything():
    curve = detection_curve([3.0, 1.0, 2.0], [False, True, False])
    assert (curve.checked[0], curve.found[0], curve.checked[-1], curve.found[-1]) == (0, 0, 1, 1)


def test_of_equal_scores_the_earlier_example_comes_first():
    assert_array_equal(detection_curve([1.0, 1.0], [False, True]).found, [0, 0, 1])


def test_only_whole_examples_are_checked():
    curve = detection_curve([3.0, 2.0, 1.0], [True, True, True])
    assert (curve.at(0.3), curve.at(1 / 3), curve.at(0.5)) == (0.0, 1 / 3, 1 / 3)


def test_a_fraction_that_rounding_made_smaller_counts_its_example():
    curve = detection_curve(np.arange(10.0, 0, -1), [True] * 10)
    assert curve.at(0.1 + 0.2) == pytest.approx(0.3)
    assert curve.at(0.7 - 0.4) == pytest.approx(0.3)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_what_is_no_fraction_is_refused(fraction):
    with pytest.raises(InvalidOption, match="from 0 to 1"):
        detection_curve([1.0], [True]).at(fraction)


@pytest.mark.parametrize(
    ("scores", "wrong"),
    [
        ([1.0, 2.0], [True]),
        ([1.0, 2.0], [0, 1]),
        ([1.0, 2.0], [False, False]),
        ([[1.0, 2.0]], [[True, False]]),
        ([np.nan, 2.0], [True, False]),
        ([], []),
    ],
)
def test_scores_and_marks_that_do_not_fit_are_refused(scores, wrong):
    with pytest.raises(InvalidOption):
        detection_curve(scores, np.array(wrong))
