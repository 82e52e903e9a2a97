"""Conjugate gradients: closed forms, blocks, preconditioners, options."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

import ihvp
from ihvp.errors import (
    IndefiniteCurvature,
    InvalidOption,
    NotConverged,
    SolverError,
)

# Closed forms


def test_toy_solution_is_exact(toy_hessian):
    solution = ihvp.solve(ihvp.Dense(toy_hessian), np.ones(2), solver=ihvp.CG(rtol=1e-12))
    np.testing.assert_allclose(ihvp.Dense(toy_hessian) @ np.ones(2), [20 / 9, 28 / 3], rtol=0, atol=1e-10)
    np.testing.assert_allclose(solution.x, [5 / 4, -1 / 12], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("damping", "published"), [(1, (0.5036, 0.0365)), (5, (0.1560, 0.0609)), (10, (0.0858, 0.0492))]
)
def test_toy_solutions_with_damping_are_the_published_ones(toy_hessian, damping, published):
    x = ihvp.solve(ihvp.Dense(toy_hessian), np.ones(2), damping, ihvp.CG(rtol=1e-12)).x
    np.testing.assert_allclose(x, published, rtol=0, atol=5e-5)
    exact = np.linalg.solve(toy_hessian + damping * np.eye(2), np.ones(2))
    np.testing.assert_allclose(x, exact, rtol=0, atol=1e-10)


def test_toy_solution_by_finite_differences(toy_gradient_function):
    objective = ihvp.Objective(params=np.array([1.0, 1 / 3]), grad=toy_gradient_function)
    x = ihvp.solve(ihvp.Hessian(objective), np.ones(2), solver=ihvp.CG(rtol=1e-8)).x
    np.testing.assert_allclose(x, [5 / 4, -1 / 12], rtol=0, atol=1e-7)


def test_one_unknown_is_a_division():
    solution = ihvp.solve(ihvp.Dense(np.array([[4.0]])), np.array([2.0]))
    assert solution.x == [0.5]
    assert solution.iterations == 1


def test_identity_takes_one_iteration(rng):
    v = rng.normal(size=30)
    solution = ihvp.solve(ihvp.Dense(np.eye(30)), v)
    np.testing.assert_allclose(solution.x, v, rtol=1e-14)
    assert solution.iterations == 1


def test_iterations_are_the_number_of_distinct_eigenvalues(rng, make_symmetric):
    matrix, _ = make_symmetric(rng, np.repeat([1.0, 2.0, 5.0], 10))
    assert ihvp.solve(ihvp.Dense(matrix), rng.normal(size=30), solver=ihvp.CG(rtol=1e-10)).iterations == 3


def test_zero_right_hand_side_has_the_solution_zero_at_once():
    solution = ihvp.solve(ihvp.Dense(np.eye(3)), np.zeros(3))
    np.testing.assert_array_equal(solution.x, np.zeros(3))
    assert (solution.converged, solution.residual, solution.iterations) == (True, 0.0, 0)


def test_zero_matrix_is_not_definite():
    with pytest.raises(IndefiniteCurvature, match="zero curvature") as caught:
        ihvp.solve(ihvp.Dense(np.zeros((3, 3))), np.ones(3))
    assert caught.value.curvature == 0.0
    assert ihvp.solve(ihvp.Dense(np.zeros((3, 3))), np.ones(3), caught.value.suggested_damping).converged


def test_negative_number_is_named_with_its_curvature():
    with pytest.raises(
        IndefiniteCurvature, match=r"negative curvature -2\.000e\+00 .* Add damping: 2\."
    ) as caught:
        ihvp.solve(ihvp.Dense(np.array([[-2.0]])), np.ones(1))
    assert caught.value.curvature == -2.0
    assert caught.value.suggested_damping > 2.0


def test_suggested_damping_is_a_total_and_not_an_addition():
    matrix = ihvp.Dense(np.diag([1.0, -3.0]))
    with pytest.raises(IndefiniteCurvature) as caught:
        ihvp.solve(matrix, np.ones(2), damping=1.0)
    assert 3.0 < caught.value.suggested_damping < 4.0


# Blocks


def test_block_has_the_solutions_of_its_columns(rng, make_symmetric):
    matrix, _ = make_symmetric(rng, np.geomspace(1, 1e3, 25))
    v = rng.normal(size=(25, 4)) * [1e-3, 1, 10, 1e4]
    block = ihvp.solve(ihvp.Dense(matrix), v, solver=ihvp.CG(rtol=1e-10))
    for column in range(4):
        alone = ihvp.solve(ihvp.Dense(matrix), v[:, column], solver=ihvp.CG(rtol=1e-10))
        np.testing.assert_allclose(block.x[:, column], alone.x, rtol=1e-7)
    assert block.residual.shape == (4,)
    assert np.all(block.residual <= 1e-10)


def test_block_of_one_column_stays_a_block():
    solution = ihvp.solve(ihvp.Dense(np.eye(3)), np.ones((3, 1)))
    assert solution.x.shape == (3, 1)
    assert solution.residual.shape == (1,)


def test_columns_are_dropped_as_they_converge(rng, make_symmetric, watched):
    matrix, basis = make_symmetric(rng, np.arange(1.0, 21.0))
    v = np.stack([basis[:, :1].sum(1), basis[:, :4].sum(1), basis.sum(1)], axis=1)
    operator = watched(matrix)
    solution = ihvp.solve(operator, v, solver=ihvp.CG(rtol=1e-10, shared=False))
    alone = [ihvp.solve(ihvp.Dense(matrix), v[:, k], solver=ihvp.CG(rtol=1e-10)).iterations for k in range(3)]
    assert alone == [1, 4, 20]
    assert solution.matvecs == sum(alone) + 3
    assert [shape[1] for shape in operator.shapes] == [3, *[2] * 3, *[1] * 16, 3]
    np.testing.assert_allclose(solution.x, np.linalg.solve(matrix, v), rtol=1e-8)


def test_more_right_hand_sides_than_unknowns(rng, make_symmetric):
    matrix, _ = make_symmetric(rng, np.array([1.0, 2.0, 3.0]))
    v = rng.normal(size=(3, 11))
    x = ihvp.solve(ihvp.Dense(matrix), v, solver=ihvp.CG(rtol=1e-12)).x
    np.testing.assert_allclose(x, np.linalg.solve(matrix, v), rtol=1e-10, atol=1e-12)


def test_repeated_and_zero_right_hand_sides(rng, make_symmetric):
    matrix, _ = make_symmetric(rng, np.geomspace(1, 10, 8))
    one = rng.normal(size=8)
    v = np.stack([one, np.zeros(8), one, -2 * one, np.zeros(8)], axis=1)
    solution = ihvp.solve(ihvp.Dense(matrix), v, solver=ihvp.CG(rtol=1e-10))
    np.testing.assert_allclose(solution.x, np.linalg.solve(matrix, v), rtol=1e-8, atol=1e-14)
    np.testing.assert_array_equal(solution.x[:, [1, 4]], 0)
    np.testing.assert_allclose(solution.x[:, 0], solution.x[:, 2], rtol=1e-12)
    np.testing.assert_array_equal(solution.residual[[1, 4]], 0)


def test_one_indefinite_column_fails_the_block_and_keeps_what_the_others_reached():
    matrix = np.diag([1.0, 2.0, -1.0])
    v = np.array([[1.0, 0.1], [0.0, 0.1], [0.0, 1.0]])
    with pytest.raises(IndefiniteCurvature) as caught:
        ihvp.solve(ihvp.Dense(matrix), v, on_failure="raise")
    assert not caught.value.solution.converged
    assert caught.value.solution.stop_reason == "indefinite"


def test_indefinite_column_is_named_beside_one_that_rounding_holds_up(rng):
    # Column 0 is solved by the recurrence but not in truth, while column 1 proves the matrix indefinite.
    size = 31
    matrix = np.diag(np.r_[np.geomspace(1, 1e4, size - 1), -1.0]).astype(np.float32)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        v = np.zeros((size, 2), np.float32)
        v[: size - 1, 0] = rng.normal(size=size - 1)
        v[:3, 1] = 1
        v[-1, 1] = 10.0 ** -rng.integers(3, 7)
        try:
            solution = ihvp.solve(ihvp.Dense(matrix), v, solver=ihvp.CG(rtol=3e-6))
        except SolverError:
            continue
        assert solution.converged


# Preconditioning


@pytest.fixture
def badly_scaled(rng, make_symmetric):
    """A well conditioned matrix in units that differ by orders of magnitude, and its diagonal."""
    core, _ = make_symmetric(rng, np.linspace(1, 3, 40))
    units = np.geomspace(1, 1e3, 40)
    matrix = units[:, None] * core * units
    return matrix, np.diag(matrix).copy()


@pytest.mark.parametrize("columns", [None, 3])
def test_diagonal_preconditioner_lowers_the_iterations(rng, badly_scaled, columns):
    matrix, diagonal = badly_scaled
    v = rng.normal(size=(40,) if columns is None else (40, columns))
    plain = ihvp.solve(ihvp.Dense(matrix), v, solver=ihvp.CG(rtol=1e-8))
    scaled = ihvp.CG(rtol=1e-8, preconditioner=ihvp.Dense(np.diag(1 / diagonal)))
    preconditioned = ihvp.solve(ihvp.Dense(matrix), v, solver=scaled)
    assert preconditioned.iterations < plain.iterations / 2
    exact = np.linalg.solve(matrix, v)
    np.testing.assert_allclose(preconditioned.x, exact, rtol=0, atol=1e-7 * np.abs(exact).max())


def test_preconditioner_may_be_a_function(badly_scaled):
    matrix, diagonal = badly_scaled
    by_function = ihvp.CG(preconditioner=lambda r: r / diagonal)
    by_operator = ihvp.CG(preconditioner=ihvp.Dense(np.diag(1 / diagonal)))
    one, two = (
        ihvp.solve(ihvp.Dense(matrix), np.ones(40), solver=solver) for solver in (by_function, by_operator)
    )
    assert one.iterations == two.iterations
    np.testing.assert_allclose(one.x, two.x, rtol=1e-10)


def test_exact_inverse_as_preconditioner_takes_one_iteration(rng, badly_scaled):
    matrix, _ = badly_scaled
    solver = ihvp.CG(rtol=1e-8, preconditioner=ihvp.Dense(np.linalg.inv(matrix)))
    assert ihvp.solve(ihvp.Dense(matrix), rng.normal(size=40), solver=solver).iterations == 1


def test_identity_that_returns_its_argument_is_a_fine_preconditioner(rng, badly_scaled):
    matrix, _ = badly_scaled
    v = rng.normal(size=40)
    plain = ihvp.solve(ihvp.Dense(matrix), v)
    same = ihvp.solve(ihvp.Dense(matrix), v, solver=ihvp.CG(preconditioner=lambda r: r))
    np.testing.assert_array_equal(plain.x, same.x)


@pytest.mark.parametrize("factor", [0.0, -1.0])
def test_preconditioner_that_is_not_definite_is_refused(factor):
    solver = ihvp.CG(preconditioner=lambda r: factor * r)
    with pytest.raises(InvalidOption, match="symmetric positive definite approximation"):
        ihvp.solve(ihvp.Dense(np.eye(3)), np.ones(3), solver=solver)


# Indefinite matrices, by choice


def test_truncation_keeps_the_iterate_before_the_direction():
    matrix, v = np.diag([3.0, -1.0]), np.array([1.0, 0.5])
    solution = ihvp.solve(ihvp.Dense(matrix), v, solver=ihvp.CG(on_indefinite="truncate"))
    np.testing.assert_allclose(solution.x, (v @ v) / (v @ matrix @ v) * v, rtol=1e-14)
    assert (solution.converged, solution.stop_reason, solution.iterations) == (False, "indefinite", 1)
    np.testing.assert_allclose(solution.residual, np.linalg.norm(v - matrix @ solution.x) / np.linalg.norm(v))


def test_truncation_of_one_column_lets_the_others_converge():
    matrix = np.diag([1.0, 2.0, -1.0])
    v = np.array([[1.0, 0.1], [1.0, 0.1], [0.0, 1.0]])
    solution = ihvp.solve(ihvp.Dense(matrix), v, solver=ihvp.CG(on_indefinite="truncate"))
    np.testing.assert_allclose(solution.x[:, 0], [1, 0.5, 0], rtol=1e-10)
    np.testing.assert_array_equal(solution.x[:, 1], 0)
    assert not solution.converged
    assert solution.residual[0] <= 1e-5


# Options


def test_options_are_frozen_and_named():
    assert dataclasses.is_dataclass(ihvp.CG)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ihvp.CG().rtol = 1.0
    with pytest.raises(TypeError):
        ihvp.CG(1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"rtol": -1e-5},
        {"rtol": np.nan},
        {"rtol": np.inf},
        {"rtol": "1e-5"},
        {"atol": -1.0},
        {"max_iterations": -1},
        {"max_iterations": 2.5},
        {"on_indefinite": "ignore"},
    ],
)
def test_option_out_of_its_range_is_refused_with_the_range(options):
    name, value = next(iter(options.items()))
    with pytest.raises(InvalidOption, match=rf"{name} is {value!r}; expected"):
        ihvp.CG(**options)


def test_no_tolerance_and_no_limit_are_refused():
    with pytest.raises(
        InvalidOption, match=r"rtol, atol is \(0, 0\); expected one of them above 0, or a max_it"
    ):
        ihvp.CG(rtol=0, atol=0)


def test_no_tolerance_with_a_limit_runs_to_the_limit(rng, make_symmetric):
    matrix, _ = make_symmetric(rng, np.geomspace(1, 100, 20))
    solver = ihvp.CG(rtol=0, atol=0, max_iterations=7)
    solution = ihvp.solve(ihvp.Dense(matrix), rng.normal(size=20), solver=solver, on_failure="return")
    assert solution.iterations == 7


def test_too_few_iterations_are_told_with_a_bound_of_the_condition_number(rng):
    q = np.linalg.qr(rng.normal(size=(50, 50)))[0]
    matrix = (q * np.geomspace(1e-4, 1.0, 50)) @ q.T
    with pytest.raises(NotConverged) as caught:
        ihvp.solve(ihvp.Dense(matrix), rng.normal(size=50), solver=ihvp.CG(rtol=1e-8, max_iterations=3))
    bound = float(re.search(r"condition number is at least (\S+)\.", str(caught.value))[1])
    assert 100 <= bound <= 1e4
