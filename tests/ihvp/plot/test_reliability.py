"""Reliability is drawn as it was counted."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import ihvp
from ihvp import plot
from ihvp.errors import NothingToDraw


def test_points_are_the_bins_that_have_examples(ax, legend):
    found = ihvp.calibration([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]], [0, 1, 1], num_bins=4)
    assert plot.calibration(found, ax, label="probit") is ax
    plot.calibration(found, ax, label="plain")
    points = ax.collections[1].get_offsets()
    used = found.counts > 0
    assert_array_equal(points, np.stack([found.confidences, found.accuracies], axis=1)[used])
    assert len(ax.lines) == 1
    assert legend() == ["probit", "plain"]


def test_levels_of_intervals(ax):
    plot.calibration(ihvp.coverage(np.zeros(4), np.ones(4), np.array([-1.0, 0.0, 0.5, 3.0])), ax)
    assert ax.get_xlabel() == "level of the interval"


def test_something_else(ax):
    with pytest.raises(NothingToDraw, match=r"ihvp\.calibration"):
        plot.calibration([1.0], ax)
