"""Scores in order, and bars of the most influential."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ihvp.errors import InvalidOption, NothingToDraw
from ihvp.influence import Scores, TopK


@pytest.fixture
def top():
    return TopK(np.array([[7, 8], [5, 6]]), np.array([[0.1, -0.1], [0.4, -0.3]]), "both", 0.0)


def test_scores_are_drawn_from_the_most_helpful_on(ax):
    assert Scores(np.array([[0.1, -0.3, 0.2]]), ("test", "train"), 0.0).plot(ax) is ax
    assert_array_equal(ax.lines[0].get_ydata(), [0.2, 0.1, -0.3])
    assert_array_equal(ax.lines[0].get_xdata(), [1, 2, 3])
    assert ax.get_xlabel() == "train examples, the most helpful first"


def test_scores_without_test_points_are_one_line(ax):
    Scores(np.array([0.1, 0.3]), ("train",), 0.0).plot(ax)
    assert_array_equal(ax.lines[0].get_ydata(), [0.3, 0.1])


def test_no_scores_are_nothing_to_draw(ax):
    with pytest.raises(NothingToDraw, match=r"shape \(0, 3\)"):
        Scores(np.empty((0, 3)), ("test", "train"), 0.0).plot(ax)


def test_the_most_influential_are_bars_with_their_numbers(ax, top):
    top.plot(ax, test=1)
    assert_allclose([bar.get_width() for bar in ax.patches], [0.4, -0.3])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["5", "6"]
    assert len({bar.get_facecolor() for bar in ax.patches}) == 2


def test_a_test_point_that_is_not_there_is_refused(ax, top):
    with pytest.raises(InvalidOption, match="test is 2; expected the number of a test point, from 0 to 1"):
        top.plot(ax, test=2)
