"""A path in the plane is drawn point by point, and one that diverges says so."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ihvp import plot
from ihvp.errors import NothingToDraw, VectorError

EXACT = np.array([1.0, -1.0])


@pytest.fixture
def contraction():
    return EXACT + 0.9 ** np.arange(120)[:, None] * np.array([-1.0, 2.0])


@pytest.fixture
def divergence():
    return EXACT + (-7.0) ** np.arange(6)[:, None] * np.array([0.1, 0.5])


def numbers(ax):
    return [text.get_text() for text in ax.texts]


def test_the_path_the_points_and_the_answer_are_drawn(ax, contraction, legend):
    assert plot.lissa_path(contraction, EXACT, ax) is ax
    star, path, points = ax.lines
    assert_array_equal(np.column_stack(star.get_data()), [EXACT])
    for line in (path, points):
        assert_array_equal(np.column_stack(line.get_data()), contraction)
    assert (star.get_marker(), path.get_linestyle(), points.get_linestyle()) == ("*", "-", "None")
    assert legend() == ["exact", "after j steps"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x₁", "x₂")
    assert ax.get_xscale() == "linear"
    assert ax.get_title() == ""


def test_numbers_stand_at_their_points(ax, contraction):
    plot.lissa_path(contraction, EXACT, ax)
    assert numbers(ax)[:4] == ["0", "1", "2", "3"]
    for text in ax.texts:
        assert_array_equal(text.xy, contraction[int(text.get_text())])


def test_no_two_numbers_lie_on_each_other(ax, contraction):
    plot.lissa_path(contraction, EXACT, ax)
    assert "100" not in numbers(ax)  # its point is that of 50, to the eye
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_number_stands_on_the_outer_side_of_a_bend(ax):
    plot.lissa_path([[0.0, 0.0], [1.0, -1.0], [2.0, 0.0]], [2.0, 0.0], ax)
    assert ax.texts[1].xyann[1] < 0


def test_the_window_may_be_shared(ax, contraction):
    plot.lissa_path(contraction, EXACT, ax, xlim=(-1, 2), ylim=(-2, 3))
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1, 2), (-2, 3))


def test_divergence_is_on_logarithmic_axes_and_named(ax, divergence):
    plot.lissa_path(divergence, EXACT, ax, xlim=(-1, 2))
    assert ax.get_title() == "diverges"
    assert (ax.get_xscale(), ax.get_yscale()) == ("symlog", "symlog")
    assert ax.get_xlim()[0] < divergence[:, 0].min()
    assert ax.get_xlim()[1] > divergence[:, 0].max()


def test_what_follows_a_point_that_is_not_finite_is_not_drawn(ax, divergence):
    plot.lissa_path(np.vstack([divergence, [np.inf, 0.0], [np.nan, 0.0], [1.0, 1.0]]), EXACT, ax)
    assert_array_equal(np.column_stack(ax.lines[1].get_data()), divergence)


def test_an_answer_of_zero_can_be_left(ax):
    plot.lissa_path([[1e-3, 1e-3], [-2e-3, 1e-3]], [0.0, 0.0], ax)
    assert ax.get_title() == "diverges"


@pytest.mark.parametrize(("points", "exact"), [(np.ones((4, 3)), np.ones(3)), (np.ones(2), np.ones(2))])
def test_points_of_another_space_are_refused_with_their_shape(ax, points, exact):
    with pytest.raises(VectorError, match=r"expected \(n, 2\)"):
        plot.lissa_path(points, exact, ax)


@pytest.mark.parametrize("points", [np.empty((0, 2)), np.full((1, 2), np.nan)])
def test_no_finite_point_is_nothing_to_draw(ax, points):
    with pytest.raises(NothingToDraw, match="no finite point"):
        plot.lissa_path(points, EXACT, ax)
