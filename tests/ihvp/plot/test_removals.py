"""Removals are points beside the line where predicted and actual agree."""

import sys

import numpy as np
import pytest
from matplotlib import pyplot
from numpy.testing import assert_array_equal

from ihvp.errors import NothingToDraw, PackageNotInstalled
from ihvp.influence import LeaveOneOut


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


def test_no_removals_are_nothing_to_draw(ax):
    with pytest.raises(NothingToDraw, match="no removals"):
        LeaveOneOut([], np.empty(0), np.empty(0)).plot(ax)


def test_without_axes_a_figure_is_made(removals):
    ax = removals.plot()
    assert ax.figure.number in pyplot.get_fignums()
    pyplot.close(ax.figure)


def test_a_missing_matplotlib_is_named(removals, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(PackageNotInstalled, match=r"ihvp\[plot\]"):
        removals.plot()
