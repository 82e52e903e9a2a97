"""Extreme Ritz values against dense eigenvalues."""

from __future__ import annotations

import numpy as np
import pytest

from ihvp.solvers.ritz import ritz_range


@pytest.mark.parametrize("size", [1, 2, 5, 15])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_matrices_are_seen_exactly(rng, make_symmetric, size, dtype):
    matrix, _ = make_symmetric(rng, np.linspace(-2, 7, size))
    values = np.linalg.eigvalsh(matrix)
    found = ritz_range(lambda v: matrix.astype(dtype) @ v, rng.normal(size=size).astype(dtype))
    tolerance = 100 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose([found.lowest, found.highest], values[[0, -1]], rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("seed", range(20))
def test_estimates_lie_inside_the_spectrum_and_an_eigenvalue_within_their_error(make_symmetric, seed):
    rng = np.random.default_rng(seed)
    matrix, _ = make_symmetric(rng, rng.normal(size=200) * 10 ** rng.uniform(-3, 3, 200))
    values = np.linalg.eigvalsh(matrix)
    found = ritz_range(lambda v: matrix @ v, rng.normal(size=200))
    slack = 1e-10 * np.abs(values).max()
    assert values[0] - slack <= found.lowest <= found.highest <= values[-1] + slack
    assert np.abs(values - found.lowest).min() <= found.lowest_error + slack
    assert np.abs(values - found.highest).min() <= found.highest_error + slack


def test_steps_limit_the_products(rng, make_symmetric):
    matrix, _ = make_symmetric(rng, np.linspace(1, 2, 50))
    products = []
    ritz_range(lambda v: products.append(1) or matrix @ v, rng.normal(size=50), steps=7)
    assert len(products) == 7


def test_eigenvector_as_start_ends_after_one_step(rng, make_symmetric):
    products = []
    found = ritz_range(lambda v: products.append(1) or 3.0 * v, rng.normal(size=50))
    assert len(products) == 1
    np.testing.assert_allclose([found.lowest, found.highest], 3.0, rtol=1e-14)
    assert found.lowest_error < 1e-14


@pytest.mark.parametrize("size", [1e-20, 1e20])
def test_length_of_the_start_does_not_matter(rng, make_symmetric, size):
    matrix, _ = make_symmetric(rng, np.linspace(-1, 1, 30))
    start = rng.normal(size=30)
    one, two = (ritz_range(lambda v: matrix @ v, scale * start) for scale in (1.0, size))
    np.testing.assert_allclose(one.lowest, two.lowest, rtol=1e-8)


def test_zero_matrix_has_the_range_zero():
    found = ritz_range(lambda v: 0.0 * v, np.ones(4))
    assert (found.lowest, found.highest, found.lowest_error) == (0.0, 0.0, 0.0)


def test_start_stays_as_it_is(rng):
    start = rng.normal(size=6)
    before = start.tobytes()
    ritz_range(lambda v: np.arange(6.0) * v, start)
    assert start.tobytes() == before
