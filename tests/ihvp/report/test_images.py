"""Images in the page, decoded by another reader of PNG."""

import base64
import re
from io import BytesIO

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.testing import assert_array_equal

from ihvp.influence import TopK


def decoded(inputs, queries=None):
    """The pixels of example 1, and of the query, in bytes."""
    top = TopK(np.array([[1]]), np.array([[0.5]]), "helpful", 0.0)
    text = top.to_html(inputs=inputs, queries=queries)
    files = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', text)]
    return [np.rint(255 * imread(BytesIO(file), "png")).astype(np.uint8) for file in reversed(files)]


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4), (1, 1), (70, 3)])
def test_bytes_are_the_same_pixels(shape):
    images = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
    assert_array_equal(decoded(images)[0], images[1])


def test_channels_may_come_first_or_be_one():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 6, 3), dtype=np.uint8)
    assert_array_equal(decoded(np.moveaxis(images, 3, 1))[0], images[1])
    assert_array_equal(decoded(images[..., :1])[0], images[1, :, :, 0])
    assert_array_equal(decoded(list(images))[0], images[1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, bool])
def test_numbers_from_0_to_1_are_shares_of_white(dtype):
    images = np.array([[[1.0, 1.0]], [[0.0, 1.0]]]).astype(dtype)
    assert_array_equal(decoded(images)[0], [[0, 255]])
    assert_array_equal(decoded(images * dtype(0.2) if dtype is not bool else images)[0][0, 0], 0)
    if dtype is not bool:
        assert_array_equal(decoded(np.full((2, 2, 2), 0.2, dtype))[0], np.full((2, 2), 51))


def test_other_numbers_reach_from_the_lowest_to_the_highest_of_all_that_is_shown():
    images = np.array([[[100.0, -100.0]], [[0.0, 1.0]]])  # the first one is not shown
    example, query = decoded(images, queries=np.array([[[-1.0, 3.0]]]))
    assert_array_equal(example, [[64, 128]])
    assert_array_equal(query, [[0, 255]])


def test_images_of_one_value_are_black():
    assert_array_equal(decoded(np.full((2, 2, 2), -7.0))[0], np.zeros((2, 2)))
