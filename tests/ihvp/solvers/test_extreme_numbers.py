"""Matrices, right-hand sides and dampings of any size: solved, or a named reason why not, and no warning."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import ihvp
from ihvp.errors import IhvpError, IndefiniteCurvature, NonFinite, NotSymmetric, SolverError, VectorError

SCALES = (5e-324, 1e-320, 1e-315, 1e-308, 1e-200, 1e-100, 1.0, 1e100, 1e200, 1e300, -1.0, -1e-310, -1e200)
SOLVERS = {
    "CG": ihvp.CG(),
    "CG, nystrom": ihvp.CG(preconditioner="nystrom"),
    "CG, gaussian": ihvp.CG(preconditioner=ihvp.Nystrom(test_matrix="gaussian")),
    "CG, 30 steps": ihvp.CG(rtol=1e-14, max_iterations=30),
    "CG, truncate": ihvp.CG(on_indefinite="truncate"),
    "CG, minres": ihvp.CG(on_indefinite="minres"),
    "CG, separate": ihvp.CG(shared=False),
    "MINRES": ihvp.MINRES(),
    "Direct": ihvp.Direct(rtol=1e-5, on_indefinite="solve"),
    "Auto": ihvp.Auto(),
    "LiSSA": ihvp.LiSSA(recursion_depth=40, on_divergence="rescale"),
}


def matrices(size, rng):
    basis, noise = np.linalg.qr(rng.normal(size=(size, size)))[0], rng.normal(size=(size, size))
    ones = np.ones(size - 1)
    return [
        np.eye(size),
        noise + noise.T,
        noise @ noise.T / size + 0.1 * np.eye(size),
        (basis * np.geomspace(1, 1e-16, size)) @ basis.T,
        np.zeros((size, size)),
        np.outer(basis[0], basis[0]),
        np.diag(np.geomspace(1, 1e-300, size)),
        np.diag([*ones, 5e-324]),
        np.diag([*ones, 1e200]),
        noise,
        noise - noise.T,
        np.diag(ones, 1),
        np.full((size, size), np.nan),
        np.diag([*ones, np.inf]),
    ]


def right_hand_sides(size, rng):
    v = rng.normal(size=size)
    alone = [size * v for size in (1.0, 0.0, 1e-320, 1e-150, 1e150, 1e300)]
    return [*alone, np.stack([v, 1e-3 * v, 0 * v], 1), np.stack([v, 1e100 * v], 1)]


def system(seed):
    """A matrix, a right-hand side and dampings of some size each."""
    rng = np.random.default_rng(seed)
    size, scale = int(rng.choice([1, 2, 3, 5, 40])), rng.choice(SCALES)
    dtype = rng.choice([np.float64, np.float64, np.float32])
    with np.errstate(all="ignore"):
        listed = matrices(size, rng)
        matrix = (listed[rng.integers(len(listed))] * scale).astype(dtype)
        sides = right_hand_sides(size, rng)
        v = sides[rng.integers(len(sides))].astype(dtype)
        dampings = [0.0, abs(scale), 1e-320, 1e300, 1.0, abs(scale) * 1e-8, [0.0, abs(scale)]]
    return matrix, v, dampings[rng.integers(len(dampings))], rng


def true_residuals(matrix, v, damping, x):
    """``‖v − (A + λI) x‖`` and ``‖v‖`` in a wider range of numbers."""
    wide, v, x = matrix.astype(np.longdouble), v.astype(np.longdouble), x.astype(np.longdouble)
    rest = v - wide @ x - np.longdouble(damping) * x
    return np.sqrt((rest**2).sum(axis=0)), np.sqrt((v**2).sum(axis=0))


class NobodysMistake(VectorError):
    pass


class Strict(ihvp.Dense):
    """As operators of objectives are: what is not finite is not multiplied."""

    def apply(self, v):
        if not np.all(np.isfinite(v)):
            raise NobodysMistake
        return super().apply(v)


@pytest.mark.parametrize("matrix_of", [ihvp.Dense, Strict])
@pytest.mark.parametrize("name", SOLVERS)
def test_solves_are_right_or_named(name, matrix_of):
    solver, named = SOLVERS[name], 0
    rtol = solver.rtol or 1e-5
    for seed in range(120):
        matrix, v, damping, _ = system(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                solutions = ihvp.solve(matrix_of(matrix), v, damping, solver, progress=False)
            except NobodysMistake:
                raise
            except IhvpError:
                named += 1
                continue
        several = isinstance(damping, list)
        for value, solution in zip(
            damping if several else [damping], solutions if several else [solutions], strict=True
        ):
            rest, size = true_residuals(matrix, v, value, solution.x)
            assert not solution.converged or np.all(rest <= 1.001 * rtol * size), seed
    assert named < 120


@pytest.mark.parametrize("matrix_of", [ihvp.Dense, Strict])
@pytest.mark.parametrize("ask", ["eigsh", "trace", "diagonal", "spectral_density", "suggest_damping"])
def test_what_else_is_asked_of_a_matrix_is_answered_or_named(ask, matrix_of):
    for seed in range(60):
        matrix, _, _, rng = system(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                if ask == "eigsh":
                    which = ("LA", "SA", "LM", "BE")[rng.integers(4)]
                    ihvp.eigsh(matrix_of(matrix), 1, which, progress=False)
                else:
                    getattr(ihvp, ask)(matrix_of(matrix))
            except NobodysMistake:
                raise
            except IhvpError:
                continue


@pytest.mark.parametrize(
    "solver", [ihvp.CG(max_iterations=3), ihvp.MINRES(), ihvp.CG(on_indefinite="minres")]
)
def test_a_solve_that_fails_for_want_of_symmetry_says_so(solver):
    A = ihvp.Dense(np.random.default_rng(0).normal(size=(20, 20)) + 8 * np.eye(20))
    with pytest.raises(NotSymmetric, match="not symmetric") as caught:
        ihvp.solve(A, np.ones(20), solver=solver)
    assert isinstance(caught.value, SolverError)
    assert caught.value.solution.x.shape == (20,)
    assert not ihvp.solve(A, np.ones(20), solver=solver, on_failure="return").converged


def test_a_symmetric_matrix_is_not_suspected():
    A = ihvp.Dense(np.diag(np.geomspace(1, 1e-12, 50)))
    with pytest.raises(SolverError) as caught:
        ihvp.solve(A, np.ones(50), solver=ihvp.MINRES(max_iterations=3))
    assert not isinstance(caught.value, NotSymmetric)


@pytest.mark.parametrize(
    "preconditioner", [None, "nystrom", ihvp.Nystrom(test_matrix="gaussian"), ihvp.Nystrom(rank=2)]
)
@pytest.mark.parametrize("size", [2, 5, 40])
@pytest.mark.parametrize("columns", [(), (3,)])
def test_a_damping_that_makes_the_matrix_singular_is_told_of(preconditioner, size, columns):
    basis = np.linalg.qr(np.random.default_rng(size).normal(size=(size, size)))[0]
    values = np.array([*np.linspace(1, 2, size - 1), -1.0])
    for matrix in (np.diag(values), (basis * values) @ basis.T):
        A, v = ihvp.Dense((matrix + matrix.T) / 2), np.ones((size, *columns))
        with pytest.raises(IndefiniteCurvature, match="Add damping"):
            ihvp.solve(A, v, damping=1.0, solver=ihvp.CG(preconditioner=preconditioner))


def test_a_matrix_that_is_not_finite_is_told_of():
    for solver in SOLVERS.values():
        with pytest.raises(NonFinite):
            ihvp.solve(ihvp.Dense(np.diag([1.0, np.nan])), np.ones(2), solver=solver)
