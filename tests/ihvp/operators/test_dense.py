"""Operators from matrices."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

import ihvp
from ihvp.errors import VectorError, WrongDtype


def test_product_is_that_of_the_matrix(rng):
    matrix = rng.normal(size=(5, 5))
    matrix += matrix.T
    v = rng.normal(size=(5, 2))
    np.testing.assert_array_equal(ihvp.Dense(matrix) @ v, matrix @ v)


def test_one_by_one_is_a_matrix():
    np.testing.assert_array_equal(ihvp.Dense(np.array([[2.0]])) @ np.array([3.0]), [6.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_that_of_the_matrix(dtype):
    assert ihvp.Dense(np.eye(2, dtype=dtype)).dtype == dtype


def test_a_matrix_in_half_precision_multiplies_in_single_precision():
    matrix = ihvp.Dense(np.full((3, 3), 40_000, np.float16))
    product = matrix @ np.ones(3, np.float32)
    assert (product.dtype, product.tolist()) == (np.float32, [120_000.0] * 3)
    with pytest.raises(WrongDtype, match="float16; expected float32"):
        matrix @ np.ones(3, np.float16)


@pytest.mark.parametrize(
    "matrix",
    [
        np.ones((2, 3)),
        np.ones(4),
        np.ones((2, 2, 2)),
        np.ones((0, 0)),
        [[1.0]],
        3.0,
        scipy.sparse.eye_array(2),
    ],
)
def test_what_is_no_square_array_is_refused(matrix):
    with pytest.raises(VectorError, match=r"The matrix is .*; expected a square 2-d array"):
        ihvp.Dense(matrix)


@pytest.mark.parametrize("dtype", [np.int64, np.complex128, bool])
def test_matrix_of_another_dtype_is_refused(dtype):
    with pytest.raises(VectorError, match="expected a real floating one"):
        ihvp.Dense(np.eye(2, dtype=dtype))
