"""The solvers on the arrays of each framework: nothing in them may be numpy's alone."""

from __future__ import annotations

import numpy as np
import pytest

import ihvp
from ihvp.algebra import to_numpy
from ihvp.errors import IndefiniteCurvature, TooLarge
from ihvp.operators import LinearOperator
from ihvp.solvers.cg import CG
from ihvp.solvers.direct import Direct
from ihvp.solvers.minres import MINRES
from ihvp.space import VectorSpace

SOLVERS = [CG(rtol=1e-5), MINRES(rtol=1e-5), Direct()]


@pytest.fixture(params=["torch", "jax"])
def asarray(request):
    """Makes an array of float32 of the framework."""
    if request.param == "torch":
        torch = pytest.importorskip("torch")
        return lambda values: torch.tensor(values, dtype=torch.float32)
    numpy = pytest.importorskip("jax.numpy")
    return lambda values: numpy.asarray(values, dtype=numpy.float32)


@pytest.fixture
def matrix():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    return (basis * np.geomspace(1, 0.01, 20)) @ basis.T


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("shape", [(20,), (20, 3)])
def test_solutions_for_several_dampings_are_those_of_numpy(asarray, matrix, solver, shape):
    v = np.random.default_rng(1).normal(size=shape)
    native = asarray(v)
    solutions = ihvp.solve(ihvp.Dense(asarray(matrix)), native, damping=[0.1, 0.0, 1.0], solver=solver)
    for damping, solution in zip([0.1, 0.0, 1.0], solutions, strict=True):
        expected = np.linalg.solve(matrix + damping * np.eye(20), v)
        assert type(solution.x) is type(native)
        assert np.linalg.norm(to_numpy(solution.x) - expected) <= 2e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    "solver", [CG(rtol=1e-5, on_indefinite="minres"), MINRES(rtol=1e-5), Direct(on_indefinite="solve")]
)
def test_indefinite_systems_are_solved(asarray, matrix, solver):
    shifted = matrix - 0.1 * np.eye(20)
    v = np.random.default_rng(1).normal(size=20)
    solution = ihvp.solve(ihvp.Dense(asarray(shifted)), asarray(v), solver=solver)
    expected = np.linalg.solve(shifted, v)
    assert np.linalg.norm(to_numpy(solution.x) - expected) <= 2e-2 * np.linalg.norm(expected)


def test_direct_names_an_indefinite_matrix(asarray):
    with pytest.raises(IndefiniteCurvature) as caught:
        ihvp.solve(ihvp.Dense(asarray(np.diag([3.0, -2.0]))), asarray(np.ones(2)), solver=Direct())
    assert caught.value.curvature == pytest.approx(-2.0, rel=1e-6)


def test_direct_refuses_a_matrix_that_does_not_fit(asarray):
    class Untouchable(LinearOperator):
        def apply(self, v):
            raise AssertionError

    with pytest.raises(TooLarge, match=r"takes 1,200,000 GB"):
        ihvp.inverse(Untouchable(VectorSpace.of(asarray(np.zeros(10_000_000)))), solver=Direct())
