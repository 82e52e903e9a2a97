"""Several dampings at once, against one at a time and dense algebra."""

from __future__ import annotations

import numpy as np
import pytest

import ihvp
from ihvp.errors import IndefiniteCurvature, InvalidOption, NotConverged, NotSymmetric
from ihvp.solvers.cg import CG
from ihvp.solvers.direct import Direct
from ihvp.solvers.minres import MINRES

DAMPINGS = np.geomspace(1e-4, 1.0, 10)


def dense_solution(matrix, v, damping):
    return np.linalg.solve(matrix + damping * np.eye(len(matrix)), v)


@pytest.mark.parametrize("solver", [CG(rtol=1e-10), MINRES(rtol=1e-10), Direct()])
def test_toy_solutions_are_the_published_ones(toy_hessian, solver):
    solutions = ihvp.solve(ihvp.Dense(toy_hessian), np.ones(2), damping=[1, 5, 10], solver=solver)
    published = [(0.5036, 0.0365), (0.156, 0.0609), (0.0858, 0.0492)]
    np.testing.assert_allclose([solution.x for solution in solutions], published, atol=6e-5)


@pytest.mark.parametrize("shape", [(100,), (100, 4)])
@pytest.mark.parametrize("rtol", [1e-5, 1e-8, 1e-10])
def test_ten_dampings_cost_at_most_a_fifth_more_than_the_hardest(rng, make_definite, watched, shape, rtol):
    matrix, v = make_definite(rng, 100, 1e5), rng.normal(size=shape)
    operator = watched(matrix)
    solutions = ihvp.solve(operator, v, damping=DAMPINGS, solver=CG(rtol=rtol))
    products = sum(1 if len(shape) == 1 else shape[1] for shape in operator.shapes)
    alone = CG(rtol=rtol, shared=False)
    hardest = ihvp.solve(ihvp.Dense(matrix), v, damping=DAMPINGS[0], solver=alone).matvecs
    assert products == sum(solution.matvecs for solution in solutions)
    assert products <= 1.2 * hardest
    for damping, solution in zip(DAMPINGS, solutions, strict=True):
        rest = np.linalg.norm(v - matrix @ solution.x - damping * solution.x, axis=0)
        assert solution.converged
        assert np.all(rest <= 1.001 * rtol * np.linalg.norm(v, axis=0))
        sizes = np.linalg.norm(v, axis=0)
        rounding = 8 * np.finfo(float).eps * np.linalg.norm(matrix, 2) * np.linalg.norm(solution.x, axis=0)
        assert np.all(solution.residual >= rest / sizes)
        assert np.all(solution.residual <= (1.001 * rest + rounding) / sizes)


def test_solutions_come_in_the_order_of_the_dampings(rng, make_definite):
    matrix, v = make_definite(rng, 20, 100), rng.normal(size=20)
    dampings = [0.1, 1.0, 0.0, 0.1]
    for damping, solution in zip(
        dampings, ihvp.solve(ihvp.Dense(matrix), v, damping=dampings, solver=CG(rtol=1e-10)), strict=True
    ):
        np.testing.assert_allclose(solution.x, dense_solution(matrix, v, damping), rtol=1e-6, atol=1e-8)


def test_iterates_are_those_of_cg_for_each_damping(rng, make_definite):
    operator, v = ihvp.Dense(make_definite(rng, 30, 100)), rng.normal(size=30)
    for damping, solution in zip(
        DAMPINGS, ihvp.solve(operator, v, damping=DAMPINGS, solver=CG(rtol=1e-3)), strict=True
    ):
        # So few that rounding does not yet part the two.
        single = ihvp.solve(operator, v, damping=damping, solver=CG(rtol=1e-3))
        assert single.iterations < 30
        assert abs(solution.iterations - single.iterations) <= 1
        steps = min(len(solution.history), len(single.history), 15)
        np.testing.assert_allclose(solution.history[:steps], single.history[:steps], rtol=1e-6)


def test_any_operator_is_shifted(toy_hessian):
    operator = 2 * ihvp.Dense(toy_hessian / 2) + 0.5
    solutions = ihvp.solve(operator, np.ones(2), damping=[0.5, 4.5], solver=CG(rtol=1e-12))
    np.testing.assert_allclose(solutions[0].x, dense_solution(toy_hessian, np.ones(2), 1.0), rtol=1e-10)
    np.testing.assert_allclose(solutions[1].x, dense_solution(toy_hessian, np.ones(2), 5.0), rtol=1e-10)


def test_block_with_zero_and_repeated_columns(rng, make_definite):
    matrix, v = make_definite(rng, 15, 100), rng.normal(size=(15, 4))
    v[:, 1], v[:, 3] = 0.0, v[:, 0]
    for damping, solution in zip(
        DAMPINGS, ihvp.solve(ihvp.Dense(matrix), v, damping=DAMPINGS, solver=CG(rtol=1e-9)), strict=True
    ):
        np.testing.assert_allclose(solution.x, dense_solution(matrix, v, damping), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(solution.x[:, 1], 0.0)


def test_columns_are_dropped_when_no_damping_needs_them(watched):
    operator = watched(np.diag([1.0, 2.0, 3.0, 4.0]))
    v = np.array([[1.0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]])
    ihvp.solve(operator, v, damping=[0.1, 1.0], solver=CG(rtol=1e-10))
    assert [shape[1] for shape in operator.shapes] == [2, 1, 1, 1, 3, 3]


def test_what_misses_the_tolerance_is_polished(rng, make_definite):
    """In float32 the Lanczos recurrence parts from the truth long before a residual of 2e-6."""
    matrix = make_definite(rng, 60, 1e3, np.float32)
    v = rng.normal(size=60).astype(np.float32)
    for solution in ihvp.solve(
        ihvp.Dense(matrix), v, damping=[0.0, 0.01], solver=CG(rtol=2e-6), on_failure="return"
    ):
        if solution.converged:
            assert solution.residual <= 2e-6
        else:
            assert solution.stop_reason == "stagnated"


def test_products_with_errors_end_at_their_noise_floor(rng, make_definite, noisy):
    operator = noisy(make_definite(rng, 20, 10), 1e-6)
    loose = ihvp.solve(operator, rng.normal(size=20), damping=[0.0, 1.0], solver=CG(rtol=1e-3))
    assert all(solution.converged for solution in loose)
    tight = ihvp.solve(
        operator, rng.normal(size=20), damping=[0.0], solver=CG(rtol=1e-12), on_failure="return"
    )
    assert tight[0].stop_reason == "stagnated"


# Failures


def test_damping_too_small_for_a_definite_matrix_does_not_disturb_the_others():
    operator, v = ihvp.Dense(np.diag([3.0, 1.0, -0.5])), np.ones(3)
    solutions = ihvp.solve(operator, v, damping=[1.0, 0.1, 2.0], on_failure="return")
    assert [solution.stop_reason for solution in solutions] == ["converged", "indefinite", "converged"]
    np.testing.assert_allclose(solutions[0].x, [1 / 4, 1 / 2, 2.0], rtol=1e-4)


@pytest.mark.parametrize("solver", [CG(), Direct()])
def test_first_failure_is_raised_and_says_which_damping_it_is(solver):
    operator = ihvp.Dense(np.diag([3.0, 1.0, -0.5]))
    with pytest.raises(IndefiniteCurvature, match=r"with damping 0\.1") as caught:
        ihvp.solve(operator, np.ones(3), damping=[1.0, 0.1, 0.2], solver=solver)
    assert caught.value.__notes__ == ["This is damping 0.1 of [1.0, 0.1, 0.2]."]
    assert caught.value.suggested_damping > 0.5


def test_indefinite_dampings_are_handed_to_minres():
    solutions = ihvp.solve(
        ihvp.Dense(np.diag([3.0, 1.0, -0.5])),
        np.ones(3),
        damping=[0.0, 1.0],
        solver=CG(rtol=1e-10, on_indefinite="minres"),
    )
    assert solutions[0].stop_reason == "converged (minres after indefinite curvature)"
    np.testing.assert_allclose(solutions[0].x, [1 / 3, 1.0, -2.0], rtol=1e-8)
    assert solutions[1].stop_reason == "converged"


def test_truncation_keeps_the_iterate_of_a_single_truncated_solve(rng, make_symmetric):
    matrix, _ = make_symmetric(rng, np.linspace(-0.1, 1, 20))
    v, solver = rng.normal(size=(20, 3)), CG(on_indefinite="truncate")
    several = ihvp.solve(ihvp.Dense(matrix), v, damping=[0.0, 0.02], solver=solver)
    for damping, solution in zip([0.0, 0.02], several, strict=True):
        single = ihvp.solve(ihvp.Dense(matrix), v, damping=damping, solver=solver)
        np.testing.assert_allclose(solution.x, single.x, rtol=1e-6, atol=1e-8)
        assert solution.stop_reason == "indefinite"


def test_limit_of_iterations_holds_for_all(rng, make_definite):
    operator = ihvp.Dense(make_definite(rng, 50, 1e6))
    with pytest.raises(NotConverged):
        ihvp.solve(operator, rng.normal(size=50), damping=[0.0, 1e-3], solver=CG(max_iterations=5))
    solutions = ihvp.solve(
        operator, rng.normal(size=50), damping=[0.0, 10.0], solver=CG(max_iterations=8), on_failure="return"
    )
    assert [solution.converged for solution in solutions] == [False, True]
    assert solutions[0].iterations == 8


def test_a_guess_and_a_preconditioner_solve_one_damping_after_another(rng, make_definite):
    matrix, v = make_definite(rng, 20, 100), rng.normal(size=20)
    plain = ihvp.solve(ihvp.Dense(matrix), v, damping=[0.1, 1.0], x0=np.ones(20), solver=CG(rtol=1e-9))
    helped = ihvp.solve(
        ihvp.Dense(matrix), v, damping=[0.1, 1.0], solver=CG(rtol=1e-9, preconditioner=lambda r: r / 2)
    )
    for damping, first, second in zip([0.1, 1.0], plain, helped, strict=True):
        np.testing.assert_allclose(first.x, dense_solution(matrix, v, damping), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(second.x, dense_solution(matrix, v, damping), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("damping", [[], [0.1, -1.0], [np.nan], ["a"]])
def test_dampings_that_are_no_numbers_from_zero_are_refused(toy_hessian, damping):
    with pytest.raises(InvalidOption, match="damping"):
        ihvp.solve(ihvp.Dense(toy_hessian), np.ones(2), damping=damping)


def test_callback_hears_of_every_shared_step(rng, make_definite):
    steps = []
    operator = ihvp.Dense(make_definite(rng, 20, 100))
    solutions = ihvp.solve(operator, rng.normal(size=20), damping=[0.01, 1.0], callback=steps.append)
    assert [step.iteration for step in steps] == list(range(1, solutions[0].iterations + 1))


# Symmetry on request


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_symmetric_operators_pass_the_probe(rng, make_definite, dtype):
    operator = ihvp.Dense(make_definite(rng, 200, 1e3, dtype))
    assert ihvp.solve(operator, np.ones(200, dtype), damping=0.1, check=True).converged


def test_noisy_products_pass_the_probe(rng, make_definite, noisy):
    operator = noisy(make_definite(rng, 20, 10), 1e-3)
    assert ihvp.solve(operator, np.ones(20), check=True, solver=CG(rtol=0.1)).converged


@pytest.mark.parametrize("asymmetry", [1.0, 1e-4])
def test_operator_that_is_not_symmetric_is_refused_before_the_solve(rng, make_definite, watched, asymmetry):
    matrix = make_definite(rng, 20, 10)
    matrix[3, 4] += asymmetry
    operator = watched(matrix)
    with pytest.raises(NotSymmetric, match="uᵀ") as caught:
        ihvp.solve(operator, np.ones(20), check=True)
    u, v = np.random.default_rng(0).standard_normal((20, 2)).T
    np.testing.assert_allclose([caught.value.left, caught.value.right], [u @ matrix @ v, v @ matrix @ u])
    assert operator.shapes == [(20, 2)]
