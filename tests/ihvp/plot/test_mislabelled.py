"""Curves of detection share their axes."""

import pytest
from numpy.testing import assert_array_equal

from ihvp.influence import detection_curve


@pytest.fixture
def curve():
    return detection_curve([0.2, 0.9], [True, False])


def test_curves_share_one_random_order(ax, curve, legend):
    assert curve.plot(ax, label="by loss") is ax
    curve.plot(ax, label="by score")
    assert legend() == ["random order", "by loss", "by score"]
    assert_array_equal(ax.lines[1].get_ydata(), curve.found)


def test_curves_differ_in_colour_and_in_dashes(ax, curve):
    for label in "abcdef":
        curve.plot(ax, label=label)
    assert len({line.get_color() for line in ax.lines[1:]}) == 6
    assert len({str(line._linestyle) + str(line._unscaled_dash_pattern) for line in ax.lines[1:]}) == 6
