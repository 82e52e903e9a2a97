"""Solves by operators that know their inverse."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import ihvp
from ihvp.errors import InvalidOption, Singular, Stagnated

P = 30


@pytest.fixture
def basis(rng):
    return np.linalg.qr(rng.normal(size=(P, 3)))[0]


def test_it_is_what_a_low_rank_operator_is_solved_by(rng, basis):
    L, v = ihvp.LowRank.of([3.0, 2.0, -1.0], basis), rng.normal(size=(P, 4))
    solution = ihvp.solve(L, v, damping=0.1)
    dense = (basis * [3.0, 2.0, -1.0]) @ basis.T + 0.1 * np.eye(P)
    assert_allclose(solution.x, np.linalg.solve(dense, v), rtol=1e-10, atol=1e-12)
    assert solution.converged
    assert (solution.iterations, solution.matvecs) == (1, 4)
    # Rounding, times the condition 3.1 / 0.1, times the few operations on each number.
    assert np.max(solution.residual) < 10 * 31 * np.finfo(float).eps


def test_another_solver_is_used_where_it_is_asked_for(rng, basis):
    L, v = ihvp.LowRank.of([3.0, 2.0, 1.0], basis), rng.normal(size=P)
    assert ihvp.solve(L, v, damping=0.1, solver=ihvp.CG(rtol=1e-10)).iterations > 1


def test_the_inverse_is_closed_too(rng, basis):
    F, v = ihvp.FullRank.of([3.0, 2.0, 1.0], basis), rng.normal(size=P)
    inverse = ihvp.inverse(F, damping=0.5)
    assert isinstance(inverse.solver, ihvp.ClosedForm)
    assert_allclose(F @ (inverse @ v) + 0.5 * (inverse @ v), v, atol=1e-12)


def test_several_dampings_give_one_solution_each(rng, basis):
    F, v = ihvp.FullRank.of([3.0, 2.0, 1.0], basis), rng.normal(size=P)
    for damping, solution in zip((0.0, 1.0), ihvp.solve(F, v, damping=[0.0, 1.0]), strict=True):
        assert_allclose(solution.x, np.linalg.solve(F.to_dense() + damping * np.eye(P), v), atol=1e-12)


@pytest.mark.parametrize(("values", "damping"), [([3.0, 2.0, 1.0], 0.0), ([3.0, 2.0, -1.0], 1.0)])
def test_a_singular_system_is_an_error_that_says_so(rng, basis, values, damping):
    L, v = ihvp.LowRank.of(values, basis), rng.normal(size=P)
    with pytest.raises(Singular, match=r"singular.*Add damping") as caught:
        ihvp.solve(L, v, damping=damping)
    solution, dense = caught.value.solution, L.to_dense() + damping * np.eye(P)
    assert not solution.converged
    assert_allclose(solution.x, np.linalg.pinv(dense, rcond=1e-12) @ v, atol=1e-12)
    assert solution.residual == pytest.approx(np.linalg.norm(v - dense @ solution.x) / np.linalg.norm(v))


def test_a_singular_system_with_v_in_its_range_is_solved(basis):
    L, v = ihvp.LowRank.of([3.0, 2.0, 1.0], basis), basis @ np.array([1.0, -1.0, 2.0])
    solution = ihvp.solve(L, v)
    assert solution.converged
    assert_allclose(solution.x, basis @ np.array([1 / 3, -1 / 2, 2.0]), atol=1e-12)


def test_all_pairs_make_an_invertible_operator(rng):
    Q = np.linalg.qr(rng.normal(size=(P, P)))[0]
    values, v = np.linspace(-2, 3.1, P), rng.normal(size=P)
    assert_allclose(ihvp.solve(ihvp.LowRank.of(values, Q), v).x, Q @ (Q.T @ v / values), rtol=1e-9)


def test_a_warm_start_leads_to_the_same_answer(rng, basis):
    F, v = ihvp.FullRank.of([3.0, 2.0, 1.0], basis), rng.normal(size=P)
    started = ihvp.solve(F, v, x0=rng.normal(size=P))
    assert_allclose(started.x, ihvp.solve(F, v).x, atol=1e-12)


def test_it_refuses_an_operator_without_closed_form():
    with pytest.raises(InvalidOption, match=r"closed form, such as ihvp\.LowRank"):
        ihvp.solve(ihvp.Dense(np.eye(3)), np.ones(3), solver=ihvp.ClosedForm())


def test_a_condition_number_beyond_the_dtype_does_not_pass(rng, basis):
    F = ihvp.FullRank.of([1e12, 1.0, 1.0], basis, tail=0.1)
    with pytest.raises(Stagnated, match="rounding in float64"):
        ihvp.solve(F, rng.normal(size=P))
