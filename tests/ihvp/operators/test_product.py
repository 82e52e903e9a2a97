"""Operators one after another, beside the products of their dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.sparse.linalg import gmres

import ihvp
from ihvp.errors import InvalidOption, VectorError
from ihvp.operators import Product

SIZE = 6


def dense(seed):
    matrix = np.random.default_rng(seed).normal(size=(SIZE, SIZE))
    return matrix @ matrix.T + np.eye(SIZE)


H, M = dense(0), dense(1)
A, B = ihvp.Dense(H), ihvp.Dense(M)


@pytest.mark.parametrize("columns", [(), (3,)])
def test_products_with_vectors_and_blocks(columns):
    v = np.random.default_rng(2).normal(size=(SIZE, *columns))
    assert_allclose(A @ B @ v, H @ M @ v)
    assert_allclose((A @ B @ A) @ v, H @ M @ H @ v, rtol=1e-12)
    assert_allclose((A @ (B @ A)).to_dense(), H @ M @ H, rtol=1e-12)
    assert_allclose((2 * (A @ B) + 1.0) @ v, 2 * H @ M @ v + v, rtol=1e-12)


def test_factors_are_one_list():
    assert [type(factor) for factor in (A @ B @ A).factors] == [ihvp.Dense] * 3
    assert len(Product(A @ B, B @ A).factors) == 4


def test_a_symmetric_product_is_solved_and_has_eigenpairs():
    v = np.random.default_rng(2).normal(size=SIZE)
    found = ihvp.solve(A @ B @ A, v, damping=0.5, solver=ihvp.CG(rtol=1e-12, max_iterations=200)).x
    assert_allclose(found, np.linalg.solve(H @ M @ H + 0.5 * np.eye(SIZE), v), rtol=1e-8)
    assert_allclose(ihvp.eigsh(A @ B @ A, 2).values, np.linalg.eigvalsh(H @ M @ H)[-2:][::-1], rtol=1e-6)


def test_another_one_is_refused_where_symmetry_counts():
    for use in (
        lambda: ihvp.solve(A @ B, np.ones(SIZE)),
        lambda: ihvp.solve((A @ B) + 0.5, np.ones(SIZE)),
        lambda: ihvp.eigsh(A @ B, 2),
        lambda: ihvp.spectral_density(A @ B),
        lambda: (A @ B).to_scipy().rmatvec(np.ones(SIZE)),
    ):
        with pytest.raises(InvalidOption, match=r"reads the same from both ends, such as H @ M @ H"):
            use()
    v = np.random.default_rng(2).normal(size=SIZE)
    found, _ = gmres((A @ B).to_scipy(), v, rtol=1e-12)
    assert_allclose(H @ M @ found, v, rtol=1e-6)


def test_other_vectors_are_refused():
    with pytest.raises(VectorError, match=r"Cannot multiply .* expected operators of one shape"):
        A @ ihvp.Dense(np.eye(2))


def test_the_error_of_a_factor_grows_with_the_next():
    class Noisy(ihvp.Dense):
        def product_error(self, v):
            return 0.01 * float(np.linalg.norm(v))

    v = np.eye(SIZE)[0]
    assert (ihvp.Dense(10 * np.eye(SIZE)) @ Noisy(np.eye(SIZE))).product_error(v) == pytest.approx(0.1)
    assert (Noisy(np.eye(SIZE)) @ ihvp.Dense(10 * np.eye(SIZE))).product_error(v) == pytest.approx(0.1)
    assert (A @ B).product_error(v) == 0
