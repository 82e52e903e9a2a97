import numpy as np
import pytest
from numpy.testing import assert_allclose

from ihvp.eigen.rayleigh_ritz import refine


class Matrix:
    """A symmetric matrix with chosen eigenvalues, which counts its products."""

    def __init__(self, values):
        rng = np.random.default_rng(0)
        self.values = np.sort(values)[::-1]
        self.vectors = np.linalg.qr(rng.standard_normal((len(values), len(values))))[0]
        self.array = (self.vectors * self.values) @ self.vectors.T
        self.passes = 0

    def __call__(self, v):
        self.passes += 1
        return self.array @ v

    def basis(self, width, noise):
        rng = np.random.default_rng(1)
        exact = self.vectors[:, :width]
        return np.linalg.qr(exact + noise * rng.standard_normal(exact.shape))[0]


def test_an_exact_basis_costs_one_pass():
    A = Matrix(0.8 ** np.arange(50))
    pairs = refine(A, A.basis(8, 0.0), 3, tol=1e-12, max_passes=100)
    assert A.passes == pairs.passes == 1
    assert_allclose(pairs.values, A.values[:3], rtol=1e-13)


@pytest.mark.parametrize("width", [5, 8, 20, 49, 50])
def test_a_poor_basis_is_improved_to_the_tolerance(width):
    A = Matrix(0.8 ** np.arange(50))
    pairs = refine(A, A.basis(width, 0.3), 5, tol=1e-10, max_passes=200)
    assert pairs.residuals.max() <= 1e-10
    assert_allclose(pairs.values, A.values[:5], atol=1e-13)
    assert_allclose(np.abs(np.sum(pairs.vectors * A.vectors[:, :5], axis=0)), 1, atol=1e-13)
    assert_allclose(pairs.vectors.T @ pairs.vectors, np.eye(5), atol=1e-13)
    assert A.passes == pairs.passes


def test_the_residuals_are_those_of_the_returned_vectors():
    A = Matrix(np.linspace(0, 1, 60))
    pairs = refine(A, A.basis(12, 1.0), 6, tol=1e-10, max_passes=4)
    true = np.linalg.norm(A.array @ pairs.vectors - pairs.vectors * pairs.values, axis=0)
    assert_allclose(pairs.residuals, true, rtol=1e-9)
    assert pairs.residuals.max() > 1e-10


@pytest.mark.parametrize("max_passes", [1, 2, 3, 10])
def test_the_passes_are_bounded(max_passes):
    A = Matrix(np.linspace(0, 1, 60))
    refine(A, A.basis(8, 1.0), 6, tol=1e-14, max_passes=max_passes)
    assert A.passes <= max_passes


def test_repeated_eigenvalues_are_found_as_often_as_they_are_there():
    A = Matrix(np.repeat([3.0, 2.0, 1.0], 10))
    pairs = refine(A, A.basis(15, 1.0), 12, tol=1e-10, max_passes=50)
    assert_allclose(pairs.values, A.values[:12], atol=1e-12)


def test_a_zero_operator_has_zero_eigenvalues():
    A = Matrix(np.zeros(10))
    pairs = refine(A, np.eye(10)[:, :4], 2, tol=1e-10, max_passes=50)
    assert_allclose(pairs.values, 0)
    assert_allclose(pairs.residuals, 0)


def test_a_tolerance_below_rounding_ends_without_it():
    A = Matrix(0.5 ** np.arange(30))
    pairs = refine(A, A.basis(10, 0.5), 4, tol=1e-300, max_passes=60)
    assert pairs.passes <= 60
    assert pairs.residuals.max() <= 1e-14
