"""Residuals are drawn as they were recorded, and the certificate at their end."""

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import ihvp
from ihvp import plot
from ihvp.errors import NothingToDraw

A, V = ihvp.Dense(np.diag([1.0, 2.0, 5.0, 9.0])), np.ones(4)


@pytest.fixture
def solution():
    return ihvp.solve(A, V)


def test_the_line_is_the_history_on_a_logarithmic_axis(ax, solution):
    assert plot.convergence(solution, ax) is ax
    line, _ = ax.lines
    assert_array_equal(line.get_xdata(), np.arange(solution.iterations + 1))
    assert_array_equal(line.get_ydata(), solution.history)
    assert ax.get_yscale() == "log"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("steps", "relative residual")
    assert ax.get_legend() is None


def test_the_marker_at_the_end_is_the_recomputed_residual(ax, solution):
    plot.convergence(solution, ax)
    _, marker = ax.lines
    assert_array_equal(marker.get_xdata(), [solution.iterations])
    assert_array_equal(marker.get_ydata(), [solution.residual])
    assert marker.get_marker() == "o"


def test_a_solve_that_did_not_converge_ends_in_a_cross(ax):
    failed = ihvp.solve(A, V, solver=ihvp.CG(max_iterations=1), on_failure="return")
    plot.convergence(failed, ax)
    assert ax.lines[1].get_marker() == "x"


def test_the_tolerance_is_a_line_with_its_value(ax, solution, legend):
    plot.convergence(solution, ax, rtol=1e-5)
    assert_array_equal(ax.lines[-1].get_ydata(), [1e-5, 1e-5])
    assert legend() == ["tolerance 1e-05"]


def test_several_solves_have_the_labels_of_the_mapping(ax, solution, legend):
    plot.convergence({"first": solution, "again": ihvp.solve(A, V, solver=ihvp.MINRES())}, ax)
    assert legend() == ["first", "again"]
    assert len({line.get_color() for line in ax.lines}) == 2
    assert len({line.get_linestyle() for line in ax.lines if len(line.get_xdata()) > 1}) == 2


def test_a_sequence_is_labelled_by_its_methods_and_numbered_where_they_are_the_same(ax, solution, legend):
    plot.convergence([solution, ihvp.solve(A, V, solver=ihvp.MINRES()), solution], ax)
    assert legend() == ["CG, 1", "MINRES", "CG, 3"]


def test_a_block_has_a_line_for_each_column_under_one_label(ax, legend):
    block = ihvp.solve(A, np.eye(4)[:, :3] + 1, solver=ihvp.CG(max_iterations=1), on_failure="return")
    plot.convergence({"block": block}, ax)
    *columns, marker = ax.lines
    assert_array_equal([line.get_ydata() for line in columns], block.history.T)
    assert marker.get_ydata() == [np.max(block.residual)]
    assert legend() == ["block"]


def test_a_residual_of_zero_is_left_out(ax, solution):
    exact = dataclasses.replace(solution, history=np.array([1.0, 0.1, 0.0]), residual=0.0)
    plot.convergence([solution, exact], ax)
    drawn = ax.lines[-1].get_ydata()
    assert_array_equal(drawn[:-1], exact.history[:-1])
    assert np.isnan(drawn[-1])


@pytest.mark.parametrize("solutions", [[], {}, ihvp.solve(A, np.zeros(4))], ids=["none", "empty", "of zero"])
def test_without_a_residual_there_is_nothing_to_draw(ax, solutions):
    with pytest.raises(NothingToDraw, match="convergence"):
        plot.convergence(solutions, ax)
    assert not ax.lines
