"""Pictures hold what they are drawn from, and say what they show."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.testing import assert_allclose, assert_array_equal

from ihvp.errors import PackageNotInstalled
from ihvp.influence import LeaveOneOut, Scores, TopK, detection_curve


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture
def removals():
    predicted = np.array([0.1, -0.2, 0.3, 0.4])
    return LeaveOneOut([np.array([i]) for i in range(4)], predicted, 1.5 * predicted)


def test_removals_are_points_beside_the_line_of_agreement(ax, removals):
    assert removals.plot(ax) is ax
    line, points = ax.lines
    assert_array_equal(line.get_xdata(), line.get_ydata())
    assert_array_equal(points.get_xdata(), removals.predicted)
    assert_array_equal(points.get_ydata(), removals.actual)
    assert "r = 1.0000, slope 1.500, n = 4" in ax.get_title()


def test_scores_are_drawn_from_the_most_helpful_on(ax):
    Scores(np.array([[0.1, -0.3, 0.2]]), ("test", "train"), 0.0).plot(ax)
    assert_array_equal(ax.lines[0].get_ydata(), [0.2, 0.1, -0.3])
    assert_array_equal(ax.lines[0].get_xdata(), [1, 2, 3])


def test_scores_without_test_points_are_one_line(ax):
    Scores(np.array([0.1, 0.3]), ("train",), 0.0).plot(ax)
    assert_array_equal(ax.lines[0].get_ydata(), [0.3, 0.1])


def test_the_most_influential_are_bars_with_their_numbers(ax):
    top = TopK(np.array([[7, 8], [5, 6]]), np.array([[0.1, -0.1], [0.4, -0.3]]), "both", 0.0)
    top.plot(ax, test=1)
    assert_allclose([bar.get_width() for bar in ax.patches], [0.4, -0.3])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["5", "6"]
    assert len({bar.get_facecolor() for bar in ax.patches}) == 2


def test_curves_share_one_random_order(ax):
    curve = detection_curve([0.2, 0.9], [True, False])
    curve.plot(ax, label="by loss")
    curve.plot(ax, label="by score")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["random order", "by loss", "by score"]
    assert_array_equal(ax.lines[1].get_ydata(), curve.found)


def test_without_axes_a_figure_is_made(removals):
    ax = removals.plot()
    assert ax.get_xlabel() == "predicted change of the test loss"
    __import__("matplotlib.pyplot").pyplot.close(ax.figure)


def test_a_missing_matplotlib_is_named(removals, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    with pytest.raises(PackageNotInstalled, match=r"ihvp\[plot\]"):
        removals.plot()
