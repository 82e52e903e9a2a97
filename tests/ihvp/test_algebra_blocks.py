"""Products of blocks with small matrices."""

from __future__ import annotations

import numpy as np
import pytest

from ihvp import algebra

ROWS = 70_000


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
def test_gram_is_the_small_product_in_float64(rng, layout):
    x, y = layout(rng.normal(size=(ROWS, 3))), layout(rng.normal(size=(ROWS, 2)))
    result = algebra.gram(x, y)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, x.T @ y, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
def test_add_product_writes_into_the_block(rng, layout):
    x, y, matrix = (
        layout(rng.normal(size=(ROWS, 3))),
        layout(rng.normal(size=(ROWS, 2))),
        rng.normal(size=(3, 2)),
    )
    expected = y + x @ matrix
    assert algebra.add_product(y, x, matrix) is y
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_multiply_writes_over_the_block(rng, width):
    x, matrix = np.asfortranarray(rng.normal(size=(ROWS, 3))), rng.normal(size=(3, width))
    expected = x @ matrix
    result = algebra.multiply(x, matrix)
    assert np.shares_memory(result, x)
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)


def test_products_with_read_only_blocks_are_new_blocks(rng):
    x, matrix = rng.normal(size=(5, 2)), rng.normal(size=(2, 2))
    x.flags.writeable = False
    before = x.copy()
    np.testing.assert_allclose(algebra.multiply(x, matrix), x @ matrix)
    np.testing.assert_allclose(algebra.add_product(x, x, matrix), x + x @ matrix)
    np.testing.assert_array_equal(x, before)


def test_blocks_by_columns_hold_one_contiguous_vector_after_another(rng):
    x = rng.normal(size=(6, 3))
    copy = algebra.copy(x)
    assert copy.T.flags.c_contiguous
    assert not np.shares_memory(copy, x)
    np.testing.assert_array_equal(copy, x)


def test_layout_survives_a_product(rng):
    x = algebra.by_columns(rng.normal(size=(6, 3)))
    assert algebra.multiply(x, np.eye(3)[:, :2]).T.flags.c_contiguous
