"""``converged`` keeps its claim in wider arithmetic, also where rounding is near the tolerance."""

from __future__ import annotations

import numpy as np
import pytest

import ihvp
from ihvp.errors import Stagnated

SOLVERS = {
    "CG": lambda rtol: ihvp.CG(rtol=rtol),
    "CG, Nyström": lambda rtol: ihvp.CG(rtol=rtol, preconditioner="nystrom"),
    "MINRES": lambda rtol: ihvp.MINRES(rtol=rtol),
    "Direct": lambda rtol: ihvp.Direct(rtol=rtol),
    "auto": lambda rtol: ihvp.Auto(rtol=rtol),
}


def system(seed, dtype):
    """An ill-conditioned matrix, right-hand sides, and a tolerance near the rounding of the residual."""
    generator = np.random.default_rng(seed)
    digits = -np.log10(np.finfo(dtype).eps)
    size = int(generator.integers(2, 13))
    basis = np.linalg.qr(generator.normal(size=(size, size)))[0]
    values = np.geomspace(1, 10 ** -generator.uniform(digits / 2, digits), size)
    matrix = ((basis * values) @ basis.T).astype(dtype)
    matrix = (matrix + matrix.T) / 2
    v = generator.normal(size=(size, 3)).astype(dtype)
    return matrix, v, 10 ** -generator.uniform(digits / 4, 3 * digits / 4)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("solver", SOLVERS)
def test_no_claim_is_exceeded_in_extended_precision(solver, dtype):
    wide = np.longdouble if dtype is np.float64 else np.float64
    claims = 0
    for seed in range(60):
        matrix, v, rtol = system(seed, dtype)
        for right in (v[:, 0], v):
            solution = ihvp.solve(
                ihvp.Dense(matrix), right, solver=SOLVERS[solver](rtol), on_failure="return"
            )
            residual = right.astype(wide) - matrix.astype(wide) @ solution.x.astype(wide)
            true = np.sqrt((residual**2).sum(axis=0) / (right.astype(wide) ** 2).sum(axis=0))
            assert not solution.converged or np.all(true <= rtol), seed
            claims += solution.converged
    assert claims >= 5


def test_several_dampings_keep_their_claims():
    for seed in range(60):
        matrix, v, rtol = system(seed, np.float64)
        dampings = [0.0, 1e-12, 1e-6]
        solutions = ihvp.solve(ihvp.Dense(matrix), v[:, 0], dampings, ihvp.CG(rtol=rtol), on_failure="return")
        for damping, solution in zip(dampings, solutions, strict=True):
            damped = matrix.astype(np.longdouble) + np.longdouble(damping) * np.eye(len(matrix))
            true = np.linalg.norm((v[:, 0] - damped @ solution.x).astype(float)) / np.linalg.norm(v[:, 0])
            assert not solution.converged or true <= rtol


def test_rounding_above_the_tolerance_is_named():
    matrix = np.diag(np.geomspace(1e-14, 1, 8))
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    matrix = basis @ matrix @ basis.T
    with pytest.raises(Stagnated, match=r"rounding in float64 allows no smaller one"):
        ihvp.solve(ihvp.Dense((matrix + matrix.T) / 2), np.ones(8), solver=ihvp.Direct(rtol=1e-10))


@pytest.mark.parametrize("solver", ["CG", "MINRES", "Direct", "auto"])
@pytest.mark.parametrize("seed", range(5))
def test_a_failed_solve_returns_nothing_worse_than_zero(solver, seed):
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.normal(size=(30, 30)))[0]
    matrix = (basis[:, :15] * np.linspace(1, 2, 15)) @ basis[:, :15].T
    solution = ihvp.solve(
        ihvp.Dense((matrix + matrix.T) / 2),
        generator.normal(size=(30, 2)),
        solver=SOLVERS[solver](1e-6),
        on_failure="return",
    )
    assert not solution.converged
    assert np.all(solution.residual <= 1 + 1e-12)
