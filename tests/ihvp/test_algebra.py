"""Vector algebra on numpy arrays."""

from __future__ import annotations

import numpy as np
import pytest

from ihvp import algebra


def test_dots_of_vectors_is_a_float64_of_shape_empty():
    result = algebra.dots(np.array([1.0, 2.0], np.float32), np.array([3.0, 4.0], np.float32))
    assert result.shape == ()
    assert result.dtype == np.float64
    assert result == 11.0


def test_dots_of_blocks_goes_column_by_column(rng):
    x, y = rng.normal(size=(2, 9, 4))
    np.testing.assert_allclose(algebra.dots(x, y), np.diag(x.T @ y), rtol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "entry"),
    [(np.float32, 1e-25), (np.float32, 1e25), (np.float64, 1e-200), (np.float64, 1e200)],
)
def test_norms_hold_over_the_whole_range_of_the_dtype(dtype, entry):
    x = np.full(16, entry, dtype)
    np.testing.assert_allclose(algebra.norms(x), 4 * np.float64(x[0]), rtol=4 * np.finfo(dtype).eps)


def test_dots_of_tiny_float32_vectors_do_not_underflow():
    x = np.full(4, 1e-25, np.float32)
    np.testing.assert_allclose(algebra.dots(x, x), 4e-50, rtol=1e-6)


def test_norms_of_zero_columns_are_zero():
    x = np.array([[0.0, 3.0], [0.0, 4.0]])
    np.testing.assert_array_equal(algebra.norms(x), [0.0, 5.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_norms_of_non_finite_vectors_are_not_finite(bad):
    assert not np.isfinite(algebra.norms(np.array([1.0, bad])))


@pytest.mark.parametrize("shape", [(70_000,), (70_000, 3)])
def test_axpy_adds_in_place_across_slices(rng, shape):
    x, y = rng.normal(size=shape), rng.normal(size=shape)
    expected = y + 0.5 * x
    result = algebra.axpy(y, 0.5, x)
    assert result is y
    np.testing.assert_allclose(result, expected, rtol=1e-15)


def test_axpy_scales_each_column_by_its_coefficient():
    y, x = np.zeros((2, 2)), np.ones((2, 2))
    scale = algebra.coefficients(np.array([2.0, 3.0]), y)
    np.testing.assert_array_equal(algebra.axpy(y, scale, x), [[2, 3], [2, 3]])


def test_xpay_and_subtract_write_into_their_first_operand():
    y = np.array([1.0, 2.0])
    assert algebra.xpay(y, 2.0, np.array([10.0, 10.0])) is y
    np.testing.assert_array_equal(y, [12, 14])
    np.testing.assert_array_equal(algebra.subtract_from(np.array([1.0, 1.0]), y), [-11, -13])


def test_coefficients_keep_the_dtype_of_the_block():
    assert algebra.coefficients(np.array([1.0, 2.0]), np.zeros((3, 2), np.float32)).dtype == np.float32


def test_copy_shares_no_memory():
    x = np.ones(3)
    assert not np.shares_memory(algebra.copy(x), x)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_all_finite_finds_one_bad_entry(bad):
    assert not algebra.all_finite(np.array([1.0, bad, 2.0]))


def test_all_finite_holds_where_only_the_sum_overflows():
    assert algebra.all_finite(np.array([1e308, 1e308]))


def test_columns_and_concatenate_take_a_block_apart_and_together(rng):
    x = rng.normal(size=(4, 5))
    left, right = algebra.columns(x, np.array([3, 1])), algebra.columns(x, np.array([0]))
    np.testing.assert_array_equal(algebra.concatenate([left, right]), x[:, [3, 1, 0]])
