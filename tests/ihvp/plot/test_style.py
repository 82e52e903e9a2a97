"""One quiet style, and nothing of it global."""

from itertools import islice

import matplotlib
import numpy as np
import pytest

import ihvp
from ihvp import plot
from ihvp.evaluate import Agreement, Brittleness, DampingPath
from ihvp.influence import LeaveOneOut, Scores, TopK, detection_curve
from ihvp.plot.style import curves

A = ihvp.Dense(np.diag([1.0, 2.0]))
LDS = Agreement("LDS", np.array([0.5, 0.7]), np.array([[0.5, 0.6], [0.4, 0.7]]))
DRAW = {
    "convergence": lambda ax: plot.convergence(ihvp.solve(A, np.ones(2)), ax),
    "spectrum": lambda ax: plot.spectrum(ihvp.eigsh(A, k=1), ihvp.spectral_density(A), ax),
    "lissa_path": lambda ax: plot.lissa_path(np.ones((2, 2)), np.ones(2), ax),
    "top_k": lambda ax: plot.top_k(TopK(np.array([[1]]), np.ones((1, 1)), "both", 0.0), ax=ax),
    "scores": lambda ax: plot.scores(Scores(np.ones((1, 1)), ("test", "train"), 0.0), ax),
    "leave_one_out": lambda ax: plot.leave_one_out(
        LeaveOneOut([np.array([0]), np.array([1])], np.arange(2.0), np.arange(2.0)), ax
    ),
    "agreement": lambda ax: plot.agreement(LDS, ax),
    "dampings": lambda ax: plot.dampings(DampingPath(np.array([0.0, 1.0]), [LDS, LDS]), ax),
    "brittleness": lambda ax: plot.brittleness(
        Brittleness(np.array([1, 2]), np.ones((2, 3)), np.zeros((2, 3))), ax
    ),
    "calibration": lambda ax: plot.calibration(ihvp.calibration([0.2, 0.9], [0, 1]), ax),
    "detection": lambda ax: plot.detection(detection_curve([0.2, 0.9], [True, False]), ax),
}


def test_every_picture_of_one_axes_is_here():
    assert {*DRAW, "influence_panels"} == set(plot.__all__)


@pytest.mark.parametrize("name", DRAW)
def test_the_axes_come_back_named_and_without_a_frame(ax, name):
    before = dict(matplotlib.rcParams)
    assert DRAW[name](ax) is ax
    assert ax.get_xlabel()
    assert not ax.spines["top"].get_visible()
    assert not ax.spines["right"].get_visible()
    assert dict(matplotlib.rcParams) == before


def test_six_curves_differ_in_colour_dashes_and_marker():
    for each in zip(*islice(curves(), 6), strict=True):
        assert len(set(each)) == 6
