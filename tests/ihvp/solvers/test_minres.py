"""MINRES against scipy, dense algebra and closed forms."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.sparse.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

import ihvp
from ihvp.errors import InvalidOption, NonFinite, NotConverged, Singular, Stagnated
from ihvp.solvers.cg import CG
from ihvp.solvers.minres import MINRES
from ihvp.space import VectorSpace


def spectrum(size, condition, negative):
    values = np.geomspace(1, 1 / condition, size)
    values[:negative] *= -1
    return values


@settings(max_examples=50, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1), size=st.integers(1, 40), decades=st.floats(0, 5), share=st.floats(0, 1)
)
def test_solution_is_that_of_dense_algebra_as_far_as_the_residual_allows(
    make_symmetric, seed, size, decades, share
):
    rng = np.random.default_rng(seed)
    values = spectrum(size, 10**decades, int(share * size))
    matrix, _ = make_symmetric(rng, values)
    v = rng.normal(size=(size, 2))
    solution = ihvp.solve(ihvp.Dense(matrix), v, solver=MINRES(rtol=1e-9))
    error = np.linalg.norm(solution.x - np.linalg.solve(matrix, v), axis=0)
    assert solution.converged
    assert np.all(error <= 2e-9 * np.linalg.norm(v, axis=0) / np.abs(values).min())


def test_residuals_are_those_of_scipys_minres(rng, make_symmetric):
    matrix, _ = make_symmetric(rng, spectrum(50, 100, 20))
    v, norms = rng.normal(size=50), []
    scipy.sparse.linalg.minres(
        matrix, v, rtol=1e-12, maxiter=30, callback=lambda x: norms.append(np.linalg.norm(v - matrix @ x))
    )
    solution = ihvp.solve(
        ihvp.Dense(matrix), v, solver=MINRES(rtol=0.0, max_iterations=30), on_failure="return"
    )
    expected = norms / np.linalg.norm(v)
    # Once a Ritz value has converged, rounding parts Lanczos processes, and every processor in its own way.
    np.testing.assert_allclose(solution.history[1:16], expected[:15], rtol=1e-6)
    np.testing.assert_allclose(solution.history[16:31], expected[15:], rtol=0.05)


def test_residual_is_the_smallest_over_the_krylov_space(rng, make_symmetric):
    matrix, _ = make_symmetric(rng, spectrum(12, 10, 5))
    v = rng.normal(size=12)
    krylov = np.linalg.qr(np.stack([np.linalg.matrix_power(matrix, k) @ v for k in range(4)], axis=1))[0]
    least = np.linalg.lstsq(matrix @ krylov, v)[1][0] ** 0.5
    solution = ihvp.solve(
        ihvp.Dense(matrix), v, solver=MINRES(rtol=1e-12, max_iterations=4), on_failure="return"
    )
    assert solution.residual == pytest.approx(least / np.linalg.norm(v), rel=1e-10)


@pytest.mark.parametrize(
    ("damping", "published"), [(1, (0.5036, 0.0365)), (5, (0.156, 0.0609)), (10, (0.0858, 0.0492))]
)
def test_toy_solutions_with_damping_are_the_published_ones(toy_hessian, damping, published):
    x = ihvp.solve(ihvp.Dense(toy_hessian), np.ones(2), damping=damping, solver=MINRES(rtol=1e-10)).x
    np.testing.assert_allclose(x, published, atol=6e-5)


def test_iterations_are_the_number_of_distinct_eigenvalues(rng, make_symmetric):
    matrix, _ = make_symmetric(rng, np.repeat([3.0, 1.0, -2.0], 5))
    assert ihvp.solve(ihvp.Dense(matrix), rng.normal(size=15), solver=MINRES(rtol=1e-10)).iterations == 3


def test_one_unknown_is_a_division():
    assert ihvp.solve(ihvp.Dense(np.array([[-4.0]])), np.array([2.0]), solver=MINRES()).x == -0.5


# Singular matrices


@pytest.mark.parametrize(
    "matrix", [np.diag([2.0, -1.0, 0.0]), np.zeros((3, 3)), np.ones((3, 3)) - np.eye(3) * 0]
)
def test_singular_matrix_that_does_not_reach_v_is_named_at_once(matrix):
    with pytest.raises(Singular, match="outside its range") as caught:
        ihvp.solve(ihvp.Dense(matrix), np.array([1.0, 2.0, 4.0]), solver=MINRES())
    assert isinstance(caught.value, Stagnated)
    assert caught.value.solution.iterations <= 4


def test_partial_solution_of_a_singular_system_is_that_of_least_squares():
    with pytest.raises(Singular) as caught:
        ihvp.solve(ihvp.Dense(np.diag([2.0, -1.0, 0.0])), np.ones(3), solver=MINRES())
    np.testing.assert_allclose(caught.value.solution.x, [0.5, -1.0, 0.0], atol=1e-12)
    assert caught.value.solution.residual == pytest.approx(3**-0.5)


def test_singular_matrix_that_reaches_v_gives_the_shortest_solution():
    solution = ihvp.solve(ihvp.Dense(np.ones((2, 2))), np.ones(2), solver=MINRES(rtol=1e-12))
    np.testing.assert_allclose(solution.x, [0.5, 0.5], rtol=1e-12)


# Blocks


def test_block_has_the_solutions_of_its_columns(rng, make_symmetric):
    matrix, _ = make_symmetric(rng, spectrum(30, 100, 10))
    v = rng.normal(size=(30, 5)) * 10.0 ** np.arange(5)
    v[:, 2], v[:, 3] = 0.0, v[:, 0]
    solution = ihvp.solve(ihvp.Dense(matrix), v, solver=MINRES(rtol=1e-10))
    np.testing.assert_allclose(
        solution.x, np.linalg.solve(matrix, v), atol=1e-7 * np.linalg.norm(v, axis=0).max()
    )
    np.testing.assert_array_equal(solution.x[:, 2], 0.0)
    np.testing.assert_allclose(solution.x[:, 3], solution.x[:, 0], rtol=1e-6)


def test_columns_are_dropped_as_they_converge(rng, make_symmetric, watched):
    matrix, basis = make_symmetric(rng, np.array([-4.0, -3.0, -2.0, 1.0, 2.0, 3.0]))
    operator = watched(matrix)
    v = np.stack([basis[:, 0], basis[:, 1] + basis[:, 4], rng.normal(size=6)], axis=1)
    solution = ihvp.solve(operator, v, solver=MINRES(rtol=1e-9))
    assert [shape[1] for shape in operator.shapes] == [3, 2, 1, 1, 1, 1, 3]
    assert solution.matvecs == 12


# Certificates and failures


def test_residual_that_parts_from_the_recurrence_is_iterated_on(rng, make_symmetric):
    matrix, _ = make_symmetric(rng, spectrum(60, 1e7, 30))
    v = rng.normal(size=60)
    solution = ihvp.solve(ihvp.Dense(matrix), v, solver=MINRES(rtol=1e-9, max_iterations=9999))
    assert solution.converged
    assert np.linalg.norm(v - matrix @ solution.x) <= 1.001e-9 * np.linalg.norm(v)


def test_limit_of_iterations_is_an_error_with_the_partial_solution(rng, make_symmetric):
    matrix, _ = make_symmetric(rng, spectrum(40, 1e4, 20))
    with pytest.raises(NotConverged, match="5 iterations brought the residual to") as caught:
        ihvp.solve(ihvp.Dense(matrix), rng.normal(size=40), solver=MINRES(max_iterations=5))
    assert caught.value.solution.iterations == 5
    assert caught.value.solution.residual < 1


def test_noise_floor_of_the_products_is_named(rng, make_symmetric, noisy):
    matrix, _ = make_symmetric(rng, spectrum(20, 5, 8))
    with pytest.raises(Stagnated, match="noise floor"):
        ihvp.solve(noisy(matrix, 1e-4), rng.normal(size=20), solver=MINRES(rtol=1e-9))


def test_no_iterations_certify_the_guess():
    solution = ihvp.solve(
        ihvp.Dense(np.diag([2.0, -1.0])),
        np.ones(2),
        x0=np.array([0.5, -1.0]),
        solver=MINRES(max_iterations=0),
    )
    assert (solution.converged, solution.matvecs) == (True, 1)
    assert solution.residual <= 1e-14


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_solution_keeps_the_dtype(rng, make_symmetric, dtype):
    matrix = make_symmetric(rng, spectrum(20, 10, 8))[0].astype(dtype)
    v = rng.normal(size=20).astype(dtype)
    solution = ihvp.solve(ihvp.Dense(matrix), v, solver=MINRES(rtol=1e-4))
    assert solution.x.dtype == dtype
    assert np.linalg.norm(v - matrix @ solution.x) <= 1.01e-4 * np.linalg.norm(v)


@pytest.mark.parametrize("factor", [1e-60, 1e60])
def test_solution_does_not_depend_on_the_scale_of_the_matrix(rng, make_symmetric, factor):
    matrix, _ = make_symmetric(rng, spectrum(20, 10, 8))
    v = rng.normal(size=20)
    x = ihvp.solve(ihvp.Dense(matrix * factor), v, solver=MINRES(rtol=1e-9)).x
    np.testing.assert_allclose(x * factor, np.linalg.solve(matrix, v), rtol=1e-6)


def test_product_that_is_not_finite_is_named():
    with pytest.raises(NonFinite):
        ihvp.solve(ihvp.Dense(np.array([[np.nan, 0.0], [0.0, 1.0]])), np.ones(2), solver=MINRES())


def test_option_out_of_its_range_is_refused():
    for options in ({"rtol": -1.0}, {"atol": np.nan}, {"max_iterations": -1}, {"rtol": 0.0}):
        with pytest.raises(InvalidOption):
            MINRES(**options)


def test_at_most_six_vectors_are_held_for_one_right_hand_side():
    size = 2_000_000

    class Diagonal(ihvp.LinearOperator):
        def apply(self, v):
            return v * values

    values = np.where(np.arange(size) % 2 == 0, 1.0, -3.0)
    operator = Diagonal(VectorSpace.of(values))
    v = np.random.default_rng(0).normal(size=size)
    tracemalloc.start()
    try:
        solution = ihvp.solve(operator, v, damping=0.5, solver=MINRES(rtol=1e-8))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert solution.iterations == 2
    assert peak <= 6.5 * v.nbytes


# After CG


def test_cg_hands_an_indefinite_system_over(rng, make_symmetric):
    matrix, _ = make_symmetric(rng, spectrum(30, 100, 10))
    v = rng.normal(size=30)
    solution = ihvp.solve(ihvp.Dense(matrix), v, solver=CG(rtol=1e-9, on_indefinite="minres"))
    assert solution.converged
    assert solution.stop_reason == "converged (minres after indefinite curvature)"
    np.testing.assert_allclose(solution.x, np.linalg.solve(matrix, v), rtol=1e-6, atol=1e-6)
    assert len(solution.history) == solution.iterations + 1


def test_cg_hands_over_only_the_columns_that_need_it(watched):
    operator = watched(np.diag([4.0, 2.0, 1.0, -1.0]))
    v = np.array([[1.0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 0]])
    solution = ihvp.solve(operator, v, solver=CG(rtol=1e-10, on_indefinite="minres"))
    np.testing.assert_allclose(solution.x, np.linalg.solve(operator.matrix, v), atol=1e-9)
    assert operator.shapes[-1] == (4, 1)
    assert solution.converged


def test_cg_that_meets_no_indefinite_curvature_is_plain_cg(toy_hessian):
    solution = ihvp.solve(ihvp.Dense(toy_hessian), np.ones(2), solver=CG(on_indefinite="minres"))
    assert solution.stop_reason == "converged"


def test_failure_after_the_handover_says_so():
    with pytest.raises(Singular) as caught:
        ihvp.solve(ihvp.Dense(np.diag([2.0, -1.0, 0.0])), np.ones(3), solver=CG(on_indefinite="minres"))
    assert caught.value.solution.stop_reason == "singular (minres after indefinite curvature)"
