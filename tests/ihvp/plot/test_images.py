"""Panels show the images that scores rank, with their scores."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.testing import assert_array_equal

from ihvp import plot
from ihvp.errors import InvalidOption, NothingToDraw, NotImages
from ihvp.influence import Scores, TopK

SCORES = Scores(np.array([[0.0] * 5, [0.3, -0.2, 0.1, 0.0, -0.4]]), ("test", "train"), 0.0)


@pytest.fixture
def figure():
    return Figure(layout="constrained")


@pytest.fixture
def images(rng):
    return rng.random((5, 4, 6))


def panels(figure):
    """Title, score and pixels of each image, the test point's without a score."""
    return [(ax.get_title(), ax.get_xlabel(), ax.images[0].get_array()) for ax in figure.axes if ax.images]


def headings(figure):
    return [part.get_suptitle() for part in figure.subfigs]


def test_the_rows_are_the_helpful_and_the_harmful_in_order(figure, images):
    assert plot.influence_panels(SCORES, images, test=1, figure=figure) is figure
    shown = panels(figure)
    assert [each[:2] for each in shown] == [
        ("0", "+0.300"),
        ("2", "+0.100"),
        ("4", "-0.400"),
        ("1", "-0.200"),
    ]
    for title, _, pixels in shown:
        assert_array_equal(pixels, images[int(title)])
    assert headings(figure) == ["Training examples that helped most", "Training examples that harmed most"]


def test_k_is_the_most_in_a_row(figure, images):
    plot.influence_panels(SCORES, images, test=1, k=1, figure=figure)
    assert [each[0] for each in panels(figure)] == ["0", "4"]


def test_helpful_and_harmful_scores_differ_in_colour(figure, images):
    plot.influence_panels(SCORES, images, test=1, k=1, figure=figure)
    assert len({ax.xaxis.label.get_color() for ax in figure.axes}) == 2


def test_equal_values_look_equal_in_all_panels(figure, images):
    plot.influence_panels(SCORES, images, test=1, figure=figure)
    shown = images[[0, 1, 2, 4]]
    assert {ax.images[0].get_clim() for ax in figure.axes if ax.images} == {(shown.min(), shown.max())}


def test_labels_take_the_place_of_numbers(figure, images):
    plot.influence_panels(SCORES, images, test=1, k=1, labels=["a", "b", "c", "d", "e"], figure=figure)
    assert [each[0] for each in panels(figure)] == ["a", "e"]


def test_the_test_image_has_its_own_title(figure, images):
    plot.influence_panels(SCORES, images, images[3], test=1, k=1, title="a 4, read as 8", figure=figure)
    question, *_ = panels(figure)
    assert question[:2] == ("a 4, read as 8", "")
    assert_array_equal(question[2], images[3])


def test_of_a_top_k_those_that_it_holds_are_shown(figure, images):
    top = TopK(np.array([[4, 0]]), np.array([[-0.4, 0.3]]), "both", 0.0)
    plot.influence_panels(top, images, figure=figure)
    assert [each[:2] for each in panels(figure)] == [("0", "+0.300"), ("4", "-0.400")]


def test_of_helpful_examples_alone_there_is_one_row(figure, images):
    plot.influence_panels(SCORES.top_k(2, "helpful"), images, test=1, figure=figure)
    assert headings(figure) == ["Training examples that helped most"]


@pytest.mark.parametrize("shape", [(5, 4, 6, 1), (5, 1, 4, 6)])
def test_a_single_channel_is_grey(figure, images, shape):
    plot.influence_panels(SCORES, images.reshape(shape), test=1, k=1, figure=figure)
    assert_array_equal(panels(figure)[0][2], images[0])


@pytest.mark.parametrize("first", [True, False])
def test_three_channels_are_colours_wherever_they_stand(figure, rng, first):
    images = rng.random((5, 4, 6, 3))
    plot.influence_panels(SCORES, np.moveaxis(images, 3, 1) if first else images, test=1, k=1, figure=figure)
    assert_array_equal(panels(figure)[0][2], images[0])


def test_a_part_of_a_figure_can_be_filled(figure, images):
    left, right = figure.subfigures(1, 2)
    assert plot.influence_panels(SCORES, images, test=1, figure=right) is right
    assert not left.subfigs
    assert [len(row.axes) for row in right.subfigs] == [2, 2]


def test_flat_pixels_are_refused_with_the_way_to_images(figure):
    with pytest.raises(NotImages, match=r"shape \(5, 64\); expected .* x.reshape\(-1, 8, 8\)"):
        plot.influence_panels(SCORES, np.ones((5, 64)), test=1, figure=figure)


@pytest.mark.parametrize("shape", [(5,), (5, 63), (5, 7, 4, 6), (5, 1, 1, 4, 6)])
def test_inputs_that_are_no_images_are_refused_with_their_shape(figure, shape):
    with pytest.raises(NotImages, match=r"expected images as \(N, height, width\)"):
        plot.influence_panels(SCORES, np.ones(shape), test=1, figure=figure)
    assert not figure.axes


def test_too_few_images_are_refused(figure, images):
    with pytest.raises(NotImages, match="3 images, where a score belongs to example 4"):
        plot.influence_panels(SCORES, images[:3], test=1, figure=figure)


def test_no_influence_is_nothing_to_draw(figure, images):
    with pytest.raises(NothingToDraw, match="test point 0"):
        plot.influence_panels(SCORES, images, figure=figure)


@pytest.mark.parametrize("options", [{"test": 2}, {"test": -1}, {"k": 0}])
def test_numbers_out_of_range_are_refused(figure, images, options):
    with pytest.raises(InvalidOption, match=next(iter(options))):
        plot.influence_panels(SCORES, images, figure=figure, **options)
