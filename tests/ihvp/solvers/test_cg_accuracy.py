"""Conjugate gradients: tolerances, guesses, scales, noisy products, and what is reported of them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import ihvp
from ihvp.errors import (
    NonFinite,
    NotConverged,
    SolverError,
    Stagnated,
    VectorError,
)
from ihvp.space import VectorSpace

# Tolerances, limits, guesses


def test_atol_stops_where_rtol_alone_would_not():
    matrix = ihvp.Dense(np.diag(np.geomspace(1, 1e3, 20)))
    v = np.full(20, 1e-4)
    loose = ihvp.solve(matrix, v, solver=ihvp.CG(rtol=1e-10, atol=1e-5))
    tight = ihvp.solve(matrix, v, solver=ihvp.CG(rtol=1e-10))
    assert loose.iterations < tight.iterations
    assert np.linalg.norm(v - matrix @ loose.x) <= 1e-5


def test_no_iterations_certify_the_guess():
    matrix = ihvp.Dense(np.diag([1.0, 2.0]))
    exact = ihvp.solve(matrix, np.array([1.0, 2.0]), x0=np.ones(2), solver=ihvp.CG(max_iterations=0))
    assert (exact.converged, exact.iterations) == (True, 0)
    with pytest.raises(NotConverged) as caught:
        ihvp.solve(matrix, np.array([1.0, 2.0]), solver=ihvp.CG(max_iterations=0))
    np.testing.assert_array_equal(caught.value.solution.x, [0, 0])
    assert caught.value.solution.residual == 1.0


def test_limit_of_iterations_is_an_error_with_the_partial_solution(rng, make_symmetric):
    matrix, _ = make_symmetric(rng, np.geomspace(1, 1e4, 50))
    v = rng.normal(size=50)
    with pytest.raises(
        NotConverged, match=r"3 iterations .* Raise max_iterations, loosen rtol, add damping"
    ) as caught:
        ihvp.solve(ihvp.Dense(matrix), v, solver=ihvp.CG(max_iterations=3))
    partial = caught.value.solution
    assert (partial.converged, partial.iterations, partial.stop_reason) == (False, 3, "max_iterations")
    np.testing.assert_allclose(
        partial.residual, np.linalg.norm(v - matrix @ partial.x) / np.linalg.norm(v), rtol=1e-8
    )


def test_iterates_are_those_of_the_textbook(rng, make_symmetric):
    matrix, _ = make_symmetric(rng, np.geomspace(1, 100, 20))
    v = rng.normal(size=20)
    krylov = np.stack([np.linalg.matrix_power(matrix, power) @ v for power in range(4)], axis=1)
    krylov = np.linalg.qr(krylov)[0]
    # The 4th iterate minimises the energy over the Krylov space of dimension 4.
    best = krylov @ np.linalg.solve(krylov.T @ matrix @ krylov, krylov.T @ v)
    found = ihvp.solve(ihvp.Dense(matrix), v, solver=ihvp.CG(max_iterations=4), on_failure="return")
    np.testing.assert_allclose(found.x, best, rtol=1e-9)


def test_tolerance_below_rounding_stagnates_and_says_so(rng, make_symmetric):
    matrix, _ = make_symmetric(rng, np.geomspace(1, 1e3, 30))
    with pytest.raises(Stagnated, match=r"rounding in float64 .* or use a wider dtype") as caught:
        ihvp.solve(ihvp.Dense(matrix), rng.normal(size=30), solver=ihvp.CG(rtol=1e-16))
    assert caught.value.solution.residual < 1e-12


def test_a_good_guess_saves_iterations(rng, make_symmetric):
    matrix, basis = make_symmetric(rng, np.geomspace(1, 1e3, 30))
    v = rng.normal(size=30)
    near = np.linalg.solve(matrix, v) + 1e-3 * basis[:, 0]
    guessed = ihvp.solve(ihvp.Dense(matrix), v, x0=near, solver=ihvp.CG(rtol=1e-10))
    assert guessed.iterations <= 3 < ihvp.solve(ihvp.Dense(matrix), v, solver=ihvp.CG(rtol=1e-10)).iterations


def test_history_begins_with_the_residual_of_the_guess():
    v, guess = np.array([3.0, 4.0]), np.array([3.0, 0.0])
    solution = ihvp.solve(ihvp.Dense(np.eye(2)), v, x0=guess)
    np.testing.assert_allclose(solution.history, [4 / 5, 0.0], atol=1e-15)


def test_guess_for_a_zero_right_hand_side_is_dropped(rng):
    v = np.stack([np.zeros(3), np.ones(3)], axis=1)
    solution = ihvp.solve(ihvp.Dense(np.diag([1.0, 2.0, 3.0])), v, x0=np.ones((3, 2)))
    np.testing.assert_array_equal(solution.x[:, 0], 0)
    assert solution.iterations <= 3


def test_v_and_the_guess_stay_as_they_are(rng):
    v, guess = rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
    before = v.tobytes(), guess.tobytes()
    ihvp.solve(ihvp.Dense(np.diag(np.arange(1.0, 6))), v, x0=guess)
    assert (v.tobytes(), guess.tobytes()) == before


# Scales and dtypes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_solution_keeps_the_dtype_and_its_accuracy(rng, make_symmetric, dtype):
    matrix, _ = make_symmetric(rng, np.geomspace(1, 100, 30))
    v = rng.normal(size=30)
    rtol = 100 * float(np.finfo(dtype).eps)
    solution = ihvp.solve(ihvp.Dense(matrix.astype(dtype)), v.astype(dtype), solver=ihvp.CG(rtol=rtol))
    assert solution.x.dtype == dtype
    np.testing.assert_allclose(solution.x, np.linalg.solve(matrix, v), atol=2 * rtol * np.linalg.norm(v))


@pytest.mark.parametrize("size", [1e-30, 1e-10, 1e10, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_solution_does_not_depend_on_the_scale_of_v(size, dtype):
    matrix = ihvp.Dense(np.diag([1.0, 2.0, 4.0]).astype(dtype))
    solution = ihvp.solve(matrix, np.full(3, size, dtype))
    np.testing.assert_allclose(solution.x.astype(float) / size, [1, 0.5, 0.25], rtol=2e-5)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_scale_beyond_what_squares_can_hold_is_refused(size):
    with pytest.raises(VectorError, match=r"expected sizes between .* Scale v, and x back"):
        ihvp.solve(ihvp.Dense(np.eye(3)), np.full(3, size))


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_solution_does_not_depend_on_the_scale_of_the_matrix(rng, make_symmetric, factor):
    matrix, _ = make_symmetric(rng, np.geomspace(1, 100, 10))
    v = rng.normal(size=10)
    solution = ihvp.solve(ihvp.Dense(factor * matrix), v, solver=ihvp.CG(rtol=1e-10))
    np.testing.assert_allclose(factor * solution.x, np.linalg.solve(matrix, v), rtol=1e-7)


# What the operator does


@pytest.mark.parametrize("noise", [1e-8, 1e-4])
@pytest.mark.parametrize("size", [5, 50, 200])
def test_noise_floor_of_the_products_is_named_and_ends_the_iteration(rng, make_symmetric, noisy, noise, size):
    matrix, _ = make_symmetric(rng, np.geomspace(1, 10, size))
    operator = noisy(matrix, noise)
    with pytest.raises(
        Stagnated, match=r"noise floor.* Ask for rtol ≥ .* backend with exact products"
    ) as caught:
        ihvp.solve(operator, rng.normal(size=size), solver=ihvp.CG(rtol=1e-12))
    assert caught.value.solution.residual <= 10 * noise
    assert operator.products < 100


@pytest.mark.parametrize("decades", [3, 6])
def test_noise_in_an_ill_conditioned_system_is_an_error_within_the_limit(rng, make_symmetric, noisy, decades):
    matrix, _ = make_symmetric(rng, np.geomspace(1, 10**decades, 20))
    operator = noisy(matrix, 1e-4)
    with pytest.raises(SolverError):
        ihvp.solve(operator, rng.normal(size=20), solver=ihvp.CG(rtol=1e-10))
    # The certificates, a probe of symmetry, and two looks at the spectrum of 20 products each come on top.
    assert operator.products <= 200 + 50


def test_finite_differences_stop_at_their_noise_floor(rng):
    x = rng.normal(size=(40, 5))

    def gradient(w, batch):
        return x.T @ np.tanh(x @ w) / 40 + 0.1 * w

    objective = ihvp.Objective(params=rng.normal(size=5), grad=gradient)
    with pytest.raises(Stagnated, match="noise floor"):
        ihvp.solve(ihvp.Hessian(objective), rng.normal(size=5), solver=ihvp.CG(rtol=1e-14))


def test_product_that_is_not_finite_is_named():
    matrix = np.diag([1.0, np.nan])
    with pytest.raises(NonFinite, match="A product with the operator"):
        ihvp.solve(ihvp.Dense(matrix), np.ones(2))


# What is reported


def test_history_is_the_relative_residual_of_each_step(rng, make_symmetric):
    matrix, _ = make_symmetric(rng, np.geomspace(1, 10, 12))
    v = rng.normal(size=12)
    solution = ihvp.solve(ihvp.Dense(matrix), v, solver=ihvp.CG(rtol=1e-8))
    assert solution.history.shape == (solution.iterations + 1,)
    for steps in (0, 2, 5):
        x = ihvp.solve(
            ihvp.Dense(matrix), v, solver=ihvp.CG(rtol=1e-8, max_iterations=steps), on_failure="return"
        ).x
        expected = np.linalg.norm(v - matrix @ x) / np.linalg.norm(v)
        np.testing.assert_allclose(solution.history[steps], expected, rtol=1e-8)


def test_history_of_a_block_keeps_the_last_value_of_dropped_columns(rng, make_symmetric):
    matrix, basis = make_symmetric(rng, np.arange(1.0, 6.0))
    v = np.stack([basis[:, 0], basis.sum(1), np.zeros(5)], axis=1)
    solution = ihvp.solve(ihvp.Dense(matrix), v)
    assert solution.history.shape == (solution.iterations + 1, 3)
    assert np.all(solution.history[1:, 0] == solution.history[1, 0])
    assert np.all(solution.history[:, 2] == 0)


def test_callback_hears_of_every_step(rng, make_symmetric):
    matrix, basis = make_symmetric(rng, np.arange(1.0, 6.0))
    v = np.stack([basis[:, 0], basis.sum(1)], axis=1)
    steps = []
    solution = ihvp.solve(ihvp.Dense(matrix), v, callback=steps.append)
    assert [step.iteration for step in steps] == list(range(1, solution.iterations + 1))
    assert [step.active for step in steps] == [2, *[1] * (solution.iterations - 1)]
    np.testing.assert_array_equal([step.residual for step in steps], solution.history[1:].max(axis=1))


def test_matvecs_count_the_products_that_were_made(rng, make_symmetric, watched):
    operator = watched(make_symmetric(rng, np.geomspace(1, 10, 12))[0])
    solution = ihvp.solve(operator, rng.normal(size=(12, 3)))
    assert solution.matvecs == sum(shape[1] for shape in operator.shapes)


# Memory


class DiagonalOperator(ihvp.LinearOperator):
    """Two eigenvalues; a product writes one fresh vector and nothing else."""

    def __init__(self, diagonal):
        super().__init__(VectorSpace.of(diagonal))
        self.diagonal = diagonal

    def apply(self, v):
        return self.diagonal * v


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_at_most_four_vectors_are_held_for_one_right_hand_side(damping):
    size = 2_000_000
    diagonal = np.where(np.arange(size) % 3, 1.0, 4.0)
    operator, v = DiagonalOperator(diagonal), np.ones(size)
    tracemalloc.start()
    try:
        solution = ihvp.solve(operator, v, damping=damping, solver=ihvp.CG(rtol=1e-12))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert solution.converged
    assert peak / (8 * size) < 4.1
