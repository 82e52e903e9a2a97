"""``solve`` and ``inverse``: forms of v, failures, and what is made once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

import ihvp
from ihvp.errors import InvalidOption, NotConverged, SolverError, VectorError, WrongDtype, WrongShape

A = np.array([[4.0, 1.0, 0.0], [1.0, 3.0, -1.0], [0.0, -1.0, 2.0]])
V = np.array([1.0, 2.0, -1.0])


@pytest.fixture
def a():
    return ihvp.Dense(A)


@dataclass(frozen=True, kw_only=True)
class Exact(ihvp.Solver):
    """A dense inverse, which counts how often it is made."""

    made: list = field(default_factory=list)

    def prepare(self, operator, damping):
        self.made.append(damping)
        return np.linalg.inv(operator.to_dense() + damping * np.eye(operator.shape[0]))

    def apply(self, prepared, v, *, x0, monitor):
        return ihvp.Solution(prepared @ v, True, 0.0, 0, 0, "converged", np.ones(1))


# solve


def test_default_is_cg_to_its_default_tolerance(a):
    solution = ihvp.solve(a, V)
    assert solution.converged
    assert solution.residual <= 1e-5
    np.testing.assert_allclose(solution.x, np.linalg.solve(A, V), atol=1e-5)


@pytest.mark.parametrize("damping", [0, 0.5, np.float32(0.5), np.int64(2), 1e3])
def test_damping_is_added_to_the_diagonal(a, damping):
    x = ihvp.solve(a, V, damping, ihvp.CG(rtol=1e-12)).x
    np.testing.assert_allclose(x, np.linalg.solve(A + float(damping) * np.eye(3), V), rtol=1e-9)


def test_residual_is_that_of_the_damped_system(a):
    solution = ihvp.solve(a, V, damping=0.5, solver=ihvp.CG(rtol=1e-3))
    expected = np.linalg.norm(V - (A + 0.5 * np.eye(3)) @ solution.x) / np.linalg.norm(V)
    np.testing.assert_allclose(solution.residual, expected, atol=1e-15)


@pytest.mark.parametrize("damping", [-1e-9, -1, np.nan, np.inf, 1j, "1", None])
def test_damping_that_is_no_finite_number_from_zero_is_refused(a, damping):
    text = r"damping is .*; expected a finite number ≥ 0, which is added to the diagonal"
    with pytest.raises(InvalidOption, match=text):
        ihvp.solve(a, V, damping=damping)
    with pytest.raises(InvalidOption, match=text):
        ihvp.inverse(a, damping=damping)


@pytest.mark.parametrize(
    ("v", "cls", "text"),
    [
        (np.ones(4), WrongShape, r"v has shape \(4,\); expected \(3,\)"),
        (np.ones((2, 3)), WrongShape, r"v has shape \(2, 3\)"),
        (np.ones((3, 0)), WrongShape, r"with k ≥ 1"),
        (np.ones(3, np.float32), WrongDtype, r"v has dtype float32; expected float64"),
        (np.array([1.0, np.nan, 0.0]), VectorError, r"v holds NaN or infinite entries; expected finite"),
        (np.array([[1.0], [np.inf], [0.0]]), VectorError, r"v holds NaN or infinite entries"),
        ([1.0, 2.0, 3.0], VectorError, r"v is list; expected an array"),
    ],
)
def test_right_hand_side_that_does_not_fit_is_refused_before_any_product(watched, v, cls, text):
    operator = watched(A)
    with pytest.raises(cls, match=text):
        ihvp.solve(operator, v)
    assert operator.shapes == []


@pytest.mark.parametrize(
    ("guess", "text"),
    [
        (np.ones((3, 2)), r"x0 has shape \(3, 2\); expected \(3,\), that of v"),
        (np.full(3, np.nan), r"x0 holds NaN or infinite entries"),
        (np.ones(4), r"has shape \(4,\)"),
    ],
)
def test_guess_that_does_not_fit_is_refused(a, guess, text):
    with pytest.raises(VectorError, match=text):
        ihvp.solve(a, V, x0=guess)


def test_unknown_way_to_fail_is_refused(a):
    with pytest.raises(InvalidOption, match=r"on_failure is 'warn'; expected 'raise' or 'return'"):
        ihvp.solve(a, V, on_failure="warn")


def test_failure_can_be_returned(a):
    solution = ihvp.solve(a, V, solver=ihvp.CG(max_iterations=1), on_failure="return")
    assert (solution.converged, solution.stop_reason, solution.iterations) == (False, "max_iterations", 1)


def test_failure_carries_what_was_computed(a):
    returned = ihvp.solve(a, V, solver=ihvp.CG(max_iterations=1), on_failure="return")
    with pytest.raises(SolverError) as caught:
        ihvp.solve(a, V, solver=ihvp.CG(max_iterations=1))
    np.testing.assert_array_equal(caught.value.solution.x, returned.x)


# Vectors in the structure of the parameters


@pytest.fixture
def structured(regression, rows):
    params = {"w": np.array([0.5, -1.0]), "b": np.array([2.0])}
    return ihvp.Hessian(ihvp.Objective(regression.loss, params, rows, backend=regression))


STRUCTURED_V = {"b": np.array([3.0]), "w": np.array([1.0, 2.0])}


def test_solution_comes_back_in_the_structure_of_v(structured, rows):
    x, _ = rows
    solution = ihvp.solve(structured, STRUCTURED_V, damping=0.1, solver=ihvp.CG(rtol=1e-12))
    expected = np.linalg.solve(x.T @ x / len(x) + 0.1 * np.eye(3), [1.0, 2.0, 3.0])
    np.testing.assert_allclose(solution.x["w"], expected[:2], rtol=1e-9)
    np.testing.assert_allclose(solution.x["b"], expected[2:], rtol=1e-9)


def test_partial_solution_of_an_error_comes_back_in_the_structure_of_v(structured):
    with pytest.raises(NotConverged) as caught:
        ihvp.solve(structured, STRUCTURED_V, solver=ihvp.CG(max_iterations=1))
    assert set(caught.value.solution.x) == {"w", "b"}


def test_guess_may_have_the_structure_of_the_parameters(structured):
    exact = ihvp.solve(structured, STRUCTURED_V, damping=0.1, solver=ihvp.CG(rtol=1e-12)).x
    again = ihvp.solve(structured, STRUCTURED_V, damping=0.1, x0=exact)
    assert again.iterations == 0


@pytest.mark.parametrize("solver", [ihvp.CG(), ihvp.CG(max_iterations=1)])
def test_parameters_are_bit_for_bit_the_same_after_a_solve(structured, solver):
    params = structured.objective.params
    before = {name: value.tobytes() for name, value in params.items()}
    ihvp.solve(structured, STRUCTURED_V, solver=solver, on_failure="return")
    assert {name: value.tobytes() for name, value in params.items()} == before


# inverse


@pytest.mark.parametrize("shape", [(3,), (3, 5)])
def test_inverse_undoes_the_product(a, rng, shape):
    v = rng.normal(size=shape)
    inverse = ihvp.inverse(a, damping=0.5, solver=ihvp.CG(rtol=1e-12))
    np.testing.assert_allclose(inverse @ ((a + 0.5) @ v), v, rtol=1e-9)


def test_inverse_is_an_operator_with_all_that_operators_do(a):
    inverse = ihvp.inverse(a, solver=ihvp.CG(rtol=1e-12))
    assert isinstance(inverse, ihvp.LinearOperator)
    np.testing.assert_allclose(inverse.to_dense(), np.linalg.inv(A), atol=1e-10)
    np.testing.assert_allclose((2 * inverse + 1.0) @ V, 2 * np.linalg.solve(A, V) + V, rtol=1e-9)
    np.testing.assert_allclose(inverse.quadratic_form(V), V @ np.linalg.solve(A, V), rtol=1e-9)
    np.testing.assert_allclose(inverse.to_scipy() @ V, np.linalg.solve(A, V), rtol=1e-9)


def test_inverse_prepares_once_for_many_right_hand_sides(a):
    solver = Exact()
    inverse = ihvp.inverse(a, damping=0.5, solver=solver)
    for _ in range(3):
        inverse @ V
    assert solver.made == [0.5]


def test_inverse_answers_in_the_structure_of_v(structured):
    answer = ihvp.inverse(structured, damping=0.1) @ STRUCTURED_V
    assert set(answer) == {"w", "b"}


def test_inverse_that_misses_its_tolerance_raises(a):
    with pytest.raises(NotConverged):
        ihvp.inverse(a, solver=ihvp.CG(max_iterations=1)) @ V


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_any_solver_serves_solve_and_inverse(a, damping):
    expected = np.linalg.solve(A + damping * np.eye(3), V)
    np.testing.assert_allclose(ihvp.solve(a, V, damping, Exact()).x, expected, rtol=1e-12)
    np.testing.assert_allclose(ihvp.inverse(a, damping, Exact()) @ V, expected, rtol=1e-12)


def test_solver_without_its_two_methods_cannot_be_made():
    class Half(ihvp.Solver):
        def prepare(self, operator, damping):
            return None

    with pytest.raises(TypeError, match="abstract"):
        Half()
