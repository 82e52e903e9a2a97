"""Eigenvalues stand on the density of all."""

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import ihvp
from ihvp import plot
from ihvp.errors import InvalidOption, NothingToDraw

A = ihvp.Dense(np.diag([0.1, 0.2, 0.3, 0.4, 2.0, 5.0]))


@pytest.fixture(scope="module")
def pairs():
    return ihvp.eigsh(A, k=2)


@pytest.fixture(scope="module")
def density():
    return ihvp.spectral_density(A)


def stems(ax):
    (drawn,) = (c for c in ax.collections if hasattr(c, "get_segments"))
    return np.array(drawn.get_segments())


def test_the_curve_is_the_density_on_a_logarithmic_axis(ax, density, legend):
    assert plot.spectrum(density=density, ax=ax) is ax
    grid, heights = ax.lines[0].get_data()
    floor = ax.get_ylim()[0]
    assert_allclose(heights, np.maximum(density.density(grid), floor), rtol=1e-12)
    assert ax.get_yscale() == "log"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("eigenvalue λ", "density of eigenvalues [1/λ]")
    assert legend() == ["density of all"]


def test_every_eigenvalue_is_within_the_curve_and_none_of_its_peaks_is_cut_off(ax, density):
    plot.spectrum(density=density, ax=ax)
    grid, heights = ax.lines[0].get_data()
    assert grid[0] < 0.1
    assert grid[-1] > 5.0
    nodes = density.nodes[density.weights > 0]
    assert heights.max() >= density.density(nodes).max()
    assert ax.get_ylim()[1] > heights.max()


def test_stems_end_on_the_density(ax, pairs, density, legend):
    plot.spectrum(pairs, density, ax)
    heights = density.density(pairs.values)
    assert_allclose(stems(ax)[:, :, 0], np.repeat(pairs.values[:, None], 2, axis=1))
    assert_allclose(stems(ax)[:, 1, 1], heights)
    assert_array_equal(ax.lines[1].get_xdata(), pairs.values)
    assert_array_equal(ax.lines[1].get_ydata(), heights)
    assert legend() == ["density of all", "2 eigenvalues"]


def test_the_width_is_that_of_the_density(ax, density):
    plot.spectrum(density=density, ax=ax, width=0.5)
    grid, heights = ax.lines[0].get_data()
    assert_allclose(heights.max(), density.density(grid, 0.5).max(), rtol=1e-12)


def test_without_a_density_stems_are_equally_high(ax, pairs, legend):
    plot.spectrum(pairs, ax=ax)
    assert_array_equal(stems(ax)[:, 1, 1], [1, 1])
    assert ax.get_xscale() == "linear"
    assert not ax.get_yticks().size
    assert legend() == ["2 eigenvalues"]


@pytest.mark.parametrize(
    ("values", "scale"), [([100.0, 1.0], "log"), ([99.0, 1.0], "linear"), ([100.0, -1.0], "linear")]
)
def test_positive_eigenvalues_over_two_decades_are_logarithmic(ax, values, scale):
    plot.spectrum(ihvp.eigenpairs.Eigenpairs.of(values, np.eye(2)), ax=ax)
    assert ax.get_xscale() == scale


def test_pairs_that_are_not_converged_are_hollow(ax, pairs, legend):
    plot.spectrum(dataclasses.replace(pairs, converged=np.array([True, False])), ax=ax)
    filled, hollow = ax.lines
    assert (filled.get_xdata().item(), hollow.get_xdata().item()) == tuple(pairs.values)
    assert hollow.get_markerfacecolor() == "white" != filled.get_markerfacecolor()
    assert legend() == ["1 converged", "1 not converged"]


def test_neither_eigenvalues_nor_a_density_is_nothing_to_draw(ax):
    for eigenpairs in (None, ihvp.eigenpairs.Eigenpairs.of([], np.empty((2, 0)))):
        with pytest.raises(NothingToDraw, match="spectrum"):
            plot.spectrum(eigenpairs, ax=ax)


def test_a_width_of_zero_is_refused(ax, density):
    with pytest.raises(InvalidOption, match="width"):
        plot.spectrum(density=density, ax=ax, width=0.0)
