"""Conjugate gradients on random systems, against scipy and dense algebra."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

import ihvp
from ihvp.errors import (
    IndefiniteCurvature,
    NotConverged,
)

RANDOM_SYSTEMS = settings(max_examples=200, derandomize=True)


def true_residual(matrix, v, x):
    """``‖v − A x‖`` column by column, in extended precision."""
    wide = np.longdouble
    return np.linalg.norm((v.astype(wide) - matrix.astype(wide) @ x.astype(wide)).astype(float), axis=0)


def rounding(matrix, x):
    """What the residual of ``x`` in float64 may differ by from that in extended precision."""
    size = matrix.shape[0]
    return 2 * size * np.finfo(np.float64).eps * np.linalg.norm(matrix, 2) * np.linalg.norm(x, axis=0)


def spectrum(rng, size, condition):
    values = condition ** -rng.uniform(size=size)
    values[0] = 1.0
    values[-1] = 1.0 if size == 1 else 1 / condition
    return values


@RANDOM_SYSTEMS
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 40),
    decades=st.floats(0, 10),
    columns=st.sampled_from([None, 1, 2, 5]),
)
def test_definite_systems_have_scipys_solution_as_far_as_the_residuals_allow(
    make_symmetric, seed, size, decades, columns
):
    rng = np.random.default_rng(seed)
    matrix, _ = make_symmetric(rng, spectrum(rng, size, 10**decades))
    v = rng.normal(size=(size,) if columns is None else (size, columns))
    rtol = 1e-6

    solution = ihvp.solve(ihvp.Dense(matrix), v, solver=ihvp.CG(rtol=rtol), on_failure="return")

    residuals = true_residual(matrix, v, solution.x)
    if solution.converged:
        assert np.all(residuals <= rtol * np.linalg.norm(v, axis=0) + rounding(matrix, solution.x))
    else:
        assert decades > 6, solution.stop_reason

    inverse_norm = 1.01 / np.linalg.eigvalsh(matrix)[0]
    for column in range(columns or 1):
        rhs, x = (v, solution.x) if columns is None else (v[:, column], solution.x[:, column])
        reference, _ = scipy.sparse.linalg.cg(matrix, rhs, rtol=rtol, maxiter=10 * size)
        allowed = true_residual(matrix, rhs, x) + true_residual(matrix, rhs, reference)
        assert np.linalg.norm(x - reference) <= inverse_norm * allowed


@RANDOM_SYSTEMS
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 40),
    decades=st.floats(0, 6),
    columns=st.sampled_from([None, 1, 3]),
    hidden=st.booleans(),
)
def test_indefinite_systems_are_solved_or_named_and_the_suggested_damping_does(
    make_symmetric, seed, size, decades, columns, hidden
):
    rng = np.random.default_rng(seed)
    values = spectrum(rng, size, 10**decades) * rng.choice([-1.0, 1.0], size=size)
    values[rng.integers(size)] *= -1
    values[np.argmax(np.abs(values))] *= 1 if np.any(values < 0) else -1
    matrix, basis = make_symmetric(rng, values)
    v = rng.normal(size=(size,) if columns is None else (size, columns))
    if hidden and np.any(values > 0):
        v = basis[:, values > 0] @ basis[:, values > 0].T @ v
    rtol = 1e-5

    error = None
    try:
        solution = ihvp.solve(ihvp.Dense(matrix), v, solver=ihvp.CG(rtol=rtol))
    except IndefiniteCurvature as caught:
        error = caught
    if error is None:
        assert solution.converged
        residuals = true_residual(matrix, v, solution.x)
        assert np.all(residuals <= rtol * np.linalg.norm(v, axis=0) + rounding(matrix, solution.x))
    else:
        assert error.curvature <= 0
        damping = error.suggested_damping
        assert 0 < damping < 2 * np.linalg.norm(matrix, 2)
        assert ihvp.solve(ihvp.Dense(matrix), v, damping, ihvp.CG(rtol=rtol)).converged


@pytest.mark.parametrize("seed", range(20))
def test_singular_consistent_systems_are_solved(make_symmetric, seed):
    rng = np.random.default_rng(seed)
    matrix, _ = make_symmetric(rng, np.r_[np.geomspace(1, 100, 12), np.zeros(5)])
    v = matrix @ rng.normal(size=17)
    solution = ihvp.solve(ihvp.Dense(matrix), v, solver=ihvp.CG(rtol=1e-8))
    assert true_residual(matrix, v, solution.x) <= 1e-8 * np.linalg.norm(v) + rounding(matrix, solution.x)


@pytest.mark.parametrize("seed", range(20))
def test_singular_inconsistent_systems_are_an_error(make_symmetric, seed):
    rng = np.random.default_rng(seed)
    matrix, _ = make_symmetric(rng, np.r_[np.geomspace(1, 100, 12), np.zeros(5)])
    with pytest.raises((IndefiniteCurvature, NotConverged)):
        ihvp.solve(ihvp.Dense(matrix), rng.normal(size=17))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exactly_singular_matrix_is_named_as_of_zero_curvature(dtype):
    matrix = ihvp.Dense(np.diag([1.0, 2.0, 0.0]).astype(dtype))
    with pytest.raises(IndefiniteCurvature, match="zero curvature") as caught:
        ihvp.solve(matrix, np.ones(3, dtype))
    assert ihvp.solve(matrix, np.ones(3, dtype), damping=caught.value.suggested_damping).converged
