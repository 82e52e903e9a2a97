"""Direct solves against numpy's own, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import ihvp
from ihvp.errors import (
    IndefiniteCurvature,
    InvalidOption,
    NonFinite,
    NotSymmetric,
    Singular,
    SolverError,
    Stagnated,
    TooLarge,
)
from ihvp.operators import LinearOperator
from ihvp.solvers.direct import Direct

INDEFINITE = np.diag([3.0, 1.0, -2.0])


@pytest.mark.parametrize(
    ("damping", "published"), [(1, (0.5036, 0.0365)), (5, (0.156, 0.0609)), (10, (0.0858, 0.0492))]
)
def test_toy_solutions_with_damping_are_the_published_ones(toy_hessian, damping, published):
    x = ihvp.solve(ihvp.Dense(toy_hessian), np.ones(2), damping=damping, solver=Direct()).x
    np.testing.assert_allclose(x, published, atol=6e-5)


@pytest.mark.parametrize("shape", [(20,), (20, 1), (20, 30)])
def test_solution_is_numpys(rng, make_definite, shape):
    matrix, v = make_definite(rng, 20, 1e3), rng.normal(size=shape)
    solution = ihvp.solve(ihvp.Dense(matrix), v, damping=0.1, solver=Direct())
    np.testing.assert_allclose(
        solution.x, np.linalg.solve(matrix + 0.1 * np.eye(20), v), rtol=1e-10, atol=1e-12
    )
    assert solution.converged
    assert np.max(solution.residual) < 1e-12


@pytest.mark.parametrize(("dtype", "accuracy"), [(np.float32, 1e-4), (np.float64, 1e-12)])
def test_solution_keeps_the_dtype_and_its_accuracy(rng, make_definite, dtype, accuracy):
    matrix, v = make_definite(rng, 12, 10, dtype), rng.normal(size=(12, 2)).astype(dtype)
    x = ihvp.solve(ihvp.Dense(matrix), v, solver=Direct()).x
    expected = np.linalg.solve(matrix.astype(float), v.astype(float))
    assert x.dtype == dtype
    assert np.linalg.norm(x - expected) <= accuracy * np.linalg.norm(expected)


def test_inverse_forms_the_matrix_once(rng, make_definite, watched):
    operator = watched(make_definite(rng, 6, 10))
    operator.to_dense = lambda: LinearOperator.to_dense(operator)
    inverse = ihvp.inverse(operator, 0.5, solver=Direct())
    assert operator.shapes == [(6, 6)]
    v = rng.normal(size=6)
    inverse @ v, inverse @ v
    assert operator.shapes == [(6, 6), (6,), (6,)]


def test_matvecs_count_the_matrix_and_the_certificate_of_each_column(rng, make_definite):
    solution = ihvp.solve(ihvp.Dense(make_definite(rng, 6, 10)), rng.normal(size=(6, 4)), solver=Direct())
    assert (solution.matvecs, solution.iterations, solution.history.shape) == (6 + 4, 1, (2, 4))


def test_several_dampings_share_the_matrix(rng, make_definite, watched):
    matrix, v = make_definite(rng, 8, 1e4), rng.normal(size=8)
    operator = watched(matrix)
    operator.to_dense = lambda: LinearOperator.to_dense(operator)
    solutions = ihvp.solve(operator, v, damping=[1.0, 0.0, 0.1], solver=Direct())
    for damping, solution in zip([1.0, 0.0, 0.1], solutions, strict=True):
        np.testing.assert_allclose(solution.x, np.linalg.solve(matrix + damping * np.eye(8), v), rtol=1e-9)
    assert operator.shapes == [(8, 8), (8,), (8,), (8,)]


def test_the_callers_matrix_stays_as_it_is(rng, make_definite):
    for matrix in (make_definite(rng, 5, 10), INDEFINITE.copy()):
        before = matrix.copy()
        ihvp.solve(
            ihvp.Dense(matrix), np.ones(len(matrix)), damping=0.1, solver=Direct(on_indefinite="solve")
        )
        np.testing.assert_array_equal(matrix, before)


# Indefinite and singular


def test_indefinite_matrix_is_named_with_its_lowest_eigenvalue_and_a_damping_that_does():
    operator, v = ihvp.Dense(INDEFINITE), np.ones(3)
    with pytest.raises(
        IndefiniteCurvature, match=r"eigenvalues reach from -2\.000e\+00 to 3\.000e\+00"
    ) as caught:
        ihvp.solve(operator, v, solver=Direct())
    assert caught.value.curvature == pytest.approx(-2, rel=1e-14)
    assert not caught.value.solution.converged
    assert caught.value.solution.stop_reason == "indefinite"
    assert ihvp.solve(operator, v, damping=caught.value.suggested_damping, solver=Direct()).converged


def test_suggested_damping_is_a_total_and_not_an_addition():
    with pytest.raises(IndefiniteCurvature) as caught:
        ihvp.solve(ihvp.Dense(INDEFINITE), np.ones(3), damping=1.5, solver=Direct())
    assert 2.0 < caught.value.suggested_damping < 2.1


def test_indefinite_matrix_is_solved_on_request():
    solution = ihvp.solve(ihvp.Dense(INDEFINITE), np.ones(3), solver=Direct(on_indefinite="solve"))
    np.testing.assert_allclose(solution.x, [1 / 3, 1.0, -0.5], rtol=1e-14)
    assert solution.converged


@pytest.mark.parametrize("matrix", [np.diag([2.0, 1.0, 0.0]), np.zeros((3, 3))])
def test_singular_matrix_that_does_not_reach_v_is_named(matrix):
    with pytest.raises(Singular, match="outside its range") as caught:
        ihvp.solve(ihvp.Dense(matrix), np.ones(3), solver=Direct())
    assert not caught.value.solution.converged


def test_singular_matrix_that_reaches_v_gives_the_shortest_solution():
    solution = ihvp.solve(ihvp.Dense(np.ones((2, 2))), np.ones(2), solver=Direct())
    np.testing.assert_allclose(solution.x, [0.5, 0.5], rtol=1e-14)


def test_zero_right_hand_side_has_the_solution_zero():
    solution = ihvp.solve(ihvp.Dense(np.zeros((2, 2))), np.zeros(2), solver=Direct())
    np.testing.assert_array_equal(solution.x, [0.0, 0.0])
    assert solution.converged


# Products with errors


def test_refinement_makes_up_for_a_matrix_of_noisy_products(rng, make_definite):
    """The matrix is off by 1e-6; fresh products are exact from then on."""

    class NoisyAtFirst(ihvp.Dense):
        def to_dense(self):
            error = 1e-6 * np.random.default_rng(0).normal(size=self.matrix.shape)
            return self.matrix + (error + error.T)

    matrix, v = make_definite(rng, 10, 10), rng.normal(size=10)
    solution = ihvp.solve(NoisyAtFirst(matrix), v, solver=Direct(rtol=1e-12))
    np.testing.assert_allclose(solution.x, np.linalg.solve(matrix, v), rtol=1e-10)
    assert 2 <= solution.iterations <= 4


def test_noise_floor_of_the_products_is_named(rng, make_definite, noisy):
    operator = noisy(make_definite(rng, 10, 10), 1e-4)
    operator.to_dense = lambda: LinearOperator.to_dense(operator)
    with pytest.raises(Stagnated, match="noise floor"):
        ihvp.solve(operator, rng.normal(size=10), solver=Direct(rtol=1e-10))
    assert ihvp.solve(operator, rng.normal(size=10), solver=Direct(rtol=1e-2)).converged


def test_matrix_by_finite_differences_is_symmetrised(toy_gradient_function):
    objective = ihvp.Objective(grad=toy_gradient_function, params=np.array([1.0, 1 / 3]))
    solution = ihvp.solve(ihvp.Hessian(objective), np.ones(2), solver=Direct(rtol=1e-7))
    np.testing.assert_allclose(solution.x, [1.25, -1 / 12], rtol=1e-6)


def test_tolerance_below_rounding_is_an_error(rng, make_definite):
    with pytest.raises(Stagnated, match="rounding"):
        ihvp.solve(ihvp.Dense(make_definite(rng, 30, 1e14)), rng.normal(size=30), solver=Direct(rtol=1e-14))


def test_matrix_that_is_not_symmetric_is_refused_with_the_two_numbers():
    matrix = np.array([[2.0, 1.0], [-3.0, 2.0]])
    with pytest.raises(NotSymmetric, match="unit vectors") as caught:
        ihvp.solve(ihvp.Dense(matrix), np.ones(2), solver=Direct())
    assert sorted((caught.value.left, caught.value.right)) == [-3.0, 1.0]


def test_product_that_is_not_finite_is_named():
    with pytest.raises(NonFinite):
        ihvp.solve(ihvp.Dense(np.array([[np.nan, 0.0], [0.0, 1.0]])), np.ones(2), solver=Direct())


# Memory and options


def test_matrix_that_does_not_fit_is_refused_before_any_product_with_the_figure():
    class Untouchable(LinearOperator):
        def apply(self, v):
            raise AssertionError

    space = dataclasses.replace(ihvp.Dense(np.eye(2)).space, size=10_000_000)
    with pytest.raises(
        TooLarge, match=r"P = 10,000,000 .* takes 2,400,000 GB of memory; .* GB are free"
    ) as caught:
        ihvp.inverse(Untouchable(space), solver=Direct())
    assert caught.value.needed == 3 * 8 * 10**14
    assert 0 < caught.value.available < 10**14
    assert isinstance(caught.value, MemoryError)


@pytest.mark.parametrize(
    "options", [{"rtol": -1.0}, {"rtol": np.nan}, {"atol": np.inf}, {"on_indefinite": "truncate"}]
)
def test_option_out_of_its_range_is_refused(options):
    with pytest.raises(InvalidOption, match="expected"):
        Direct(**options)


def test_failure_can_be_returned():
    solution = ihvp.solve(ihvp.Dense(INDEFINITE), np.ones(3), solver=Direct(), on_failure="return")
    assert not solution.converged


def test_guess_that_solves_is_certified_with_one_product_beside_the_matrix(toy_hessian):
    solution = ihvp.solve(ihvp.Dense(toy_hessian), np.ones(2), x0=np.array([1.25, -1 / 12]), solver=Direct())
    assert (solution.matvecs, solution.iterations, solution.converged) == (2 + 1, 0, True)


def test_all_failures_are_solver_errors():
    assert issubclass(Singular, Stagnated)
    assert issubclass(Singular, SolverError)
