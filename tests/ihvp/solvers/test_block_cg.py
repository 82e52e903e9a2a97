"""Block CG on its own, against dense solves and CG on separate columns."""

from __future__ import annotations

import tracemalloc
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

import ihvp
from ihvp.errors import InvalidOption, NonFinite, SolverError
from ihvp.operators.base import LinearOperator, Shifted
from ihvp.progress import Monitor
from ihvp.solvers.block_cg import BlockConjugate
from ihvp.solvers.conjugate import Conjugate
from ihvp.solvers.refinement import Refinement
from ihvp.solvers.tolerances import iteration_limit
from ihvp.space import VectorSpace

DAMPING = 0.02


def course_of(sweep, operator, v, damping=0.0, x0=None, **options):
    """The course of one method over a block, every residual recomputed."""
    method = ihvp.CG(**options)
    system = operator if isinstance(operator, LinearOperator) else ihvp.Dense(operator)
    course = Refinement(
        Shifted(system, damping), v, rtol=method.rtol, atol=method.atol, x0=x0, monitor=Monitor("CG")
    )
    start = partial(sweep, method.preconditioner, method.on_indefinite == "raise")
    course.run(start, iteration_limit(method.max_iterations, v))
    return course


def shared(*arguments, **options):
    return course_of(BlockConjugate, *arguments, **options).solution()


def separate(*arguments, **options):
    return course_of(Conjugate, *arguments, **options).solution()


# Two models of handwritten digits, with derivatives by hand


def digits():
    pixels, labels = load_digits(return_X_y=True)
    return pixels / 16, np.eye(10)[labels]


def softmax(scores):
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def regression():
    """Softmax regression, P = 650: its Hessian and the gradients of 16 test digits."""
    images, targets = digits()
    images = np.column_stack([images, np.ones(len(images))])
    x, y = images[:1500], targets[:1500]
    weights = np.zeros((65, 10))
    for _ in range(100):
        weights -= 0.5 * x.T @ (softmax(x @ weights) - y) / len(x)
    p = softmax(x @ weights)
    hessian = np.empty((65, 10, 65, 10))
    for c in range(10):
        for d in range(10):
            hessian[:, c, :, d] = (x.T * (p[:, c] * ((c == d) - p[:, d]))) @ x / len(x)
    x, y = images[1500:1516], targets[1500:1516]
    gradients = np.einsum("ni,nc->icn", x, softmax(x @ weights) - y)
    return ihvp.Dense(hessian.reshape(650, 650)), gradients.reshape(650, 16)


class TanhNetwork(LinearOperator):
    """The Hessian of the mean cross-entropy of a tanh network 64-32-10, P = 2,410, by Pearlmutter's rules."""

    SHAPES = (64, 32), (32,), (32, 10), (10,)

    def __init__(self, x, y, weights):
        super().__init__(VectorSpace.of(weights))
        self.x = x
        self.w1, self.b1, self.w2, self.b2 = self.split(weights)
        self.hidden = np.tanh(x @ self.w1 + self.b1)
        self.p = softmax(self.hidden @ self.w2 + self.b2)
        self.outer = (self.p - y) / len(x)

    def split(self, weights):
        stops = np.cumsum([int(np.prod(shape)) for shape in self.SHAPES])[:-1]
        return [
            part.reshape(shape) for part, shape in zip(np.split(weights, stops), self.SHAPES, strict=True)
        ]

    def joined(self, inner, hidden_part, outer_sum):
        return np.concatenate(
            [(self.x.T @ inner).ravel(), inner.sum(axis=0), hidden_part.ravel(), outer_sum.sum(axis=0)]
        )

    def gradient(self):
        inner = (self.outer @ self.w2.T) * (1 - self.hidden**2)
        return self.joined(inner, self.hidden.T @ self.outer, self.outer)

    def apply(self, v):
        return np.stack([self.product(column) for column in v.T], axis=1)

    def product(self, v):
        v1, c1, v2, c2 = self.split(v)
        slope = 1 - self.hidden**2
        hidden = slope * (self.x @ v1 + c1)
        scores = hidden @ self.w2 + self.hidden @ v2 + c2
        outer = self.p * (scores - (self.p * scores).sum(axis=1, keepdims=True)) / len(self.x)
        inner = (outer @ self.w2.T + self.outer @ v2.T) * slope
        inner -= 2 * self.hidden * hidden * (self.outer @ self.w2.T)
        return self.joined(inner, hidden.T @ self.outer + self.hidden.T @ outer, outer)


@pytest.fixture(scope="module")
def network():
    """A trained network's Hessian and the gradients of 16 test digits."""
    images, targets = digits()
    rng = np.random.default_rng(0)
    weights = np.concatenate(
        [rng.normal(size=2048) / 8, np.zeros(32), rng.normal(size=320) / np.sqrt(32), np.zeros(10)]
    )
    speed = np.zeros_like(weights)
    for _ in range(60):
        speed = 0.9 * speed + TanhNetwork(images[:1500], targets[:1500], weights).gradient()
        weights = weights - 0.1 * speed
    gradients = [
        TanhNetwork(images[i : i + 1], targets[i : i + 1], weights).gradient() for i in range(1500, 1516)
    ]
    return TanhNetwork(images[:1500], targets[:1500], weights), np.stack(gradients, axis=1)


@pytest.mark.parametrize(
    ("problem", "rtol", "products", "ratio"),
    [
        ("regression", 1e-3, 80, 2.7),
        ("regression", 1e-6, 144, 2.2),
        ("network", 1e-3, 160, 2.2),
        ("network", 1e-6, 272, 2.9),
    ],
)
def test_sixteen_test_gradients_need_less_than_half_the_products_of_separate_columns(
    request, problem, rtol, products, ratio
):
    hessian, gradients = request.getfixturevalue(problem)
    block = shared(hessian, gradients, DAMPING, rtol=rtol)
    columns = separate(hessian, gradients, DAMPING, rtol=rtol)
    assert block.converged
    assert columns.converged
    certificate = gradients.shape[1]
    assert block.matvecs - certificate <= products
    assert columns.matvecs - certificate >= ratio * (block.matvecs - certificate)


# The answer


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-10), (np.float32, 1e-5)])
def test_solution_is_that_of_a_dense_solve(rng, make_definite, dtype, rtol):
    matrix = make_definite(rng, 60, 100.0)
    v = rng.normal(size=(60, 5))
    solution = shared(matrix.astype(dtype), v.astype(dtype), rtol=rtol)
    assert solution.converged
    assert solution.x.dtype == dtype
    np.testing.assert_allclose(solution.x, np.linalg.solve(matrix, v), atol=200 * rtol * np.abs(v).max())


def test_history_is_that_of_the_recomputed_residuals(rng, make_definite):
    matrix, v = make_definite(rng, 80, 1e3), rng.normal(size=(80, 4))
    for limit in range(6):
        solution = shared(matrix, v, rtol=1e-12, max_iterations=limit)
        residual = np.linalg.norm(v - matrix @ solution.x, axis=0) / np.linalg.norm(v, axis=0)
        np.testing.assert_allclose(solution.history[-1], residual, rtol=1e-9)
        np.testing.assert_allclose(solution.residual, residual, rtol=1e-9)


def test_block_of_as_many_columns_as_parameters_is_solved_by_one_product(rng, make_definite):
    matrix, v = make_definite(rng, 12, 1e4), rng.normal(size=(12, 12))
    solution = shared(matrix, v, rtol=1e-8)
    assert (solution.iterations, solution.matvecs) == (1, 24)


def test_iterates_are_the_best_of_the_shared_space(rng, make_definite):
    matrix, v = make_definite(rng, 40, 1e3), rng.normal(size=(40, 3))
    x = shared(matrix, v, rtol=1e-12, max_iterations=3).x
    powers = [np.linalg.matrix_power(matrix, power) @ v for power in range(3)]
    space = np.linalg.qr(np.concatenate(powers, axis=1))[0]
    best = space @ np.linalg.solve(space.T @ matrix @ space, space.T @ v)
    np.testing.assert_allclose(x, best, rtol=1e-7, atol=1e-9)


def test_guess_is_where_the_work_starts(rng, make_definite):
    matrix, v = make_definite(rng, 60, 1e4), rng.normal(size=(60, 3))
    exact = np.linalg.solve(matrix, v)
    cold = shared(matrix, v, rtol=1e-8)
    warm = shared(matrix, v, rtol=1e-8, x0=exact * (1 + 1e-6))
    assert warm.converged
    assert warm.matvecs < cold.matvecs


# Dependent, zero and solved columns


def test_repeated_and_combined_right_hand_sides_cost_no_products(rng, make_definite):
    matrix, v = make_definite(rng, 60, 100.0), rng.normal(size=(60, 2))
    dependent = np.column_stack([v, v[:, 0], v @ [1.0, -2.0], np.zeros(60)])
    solution, plain = shared(matrix, dependent, rtol=1e-8), shared(matrix, v, rtol=1e-8)
    assert solution.converged
    assert solution.matvecs - 5 <= plain.matvecs - 2 + 2
    np.testing.assert_array_equal(solution.x[:, 4], 0)
    np.testing.assert_allclose(solution.x[:, 2], solution.x[:, 0], rtol=1e-9, atol=1e-12)


def test_columns_nearer_than_the_tolerance_count_as_one(rng, make_definite, watched):
    matrix, v = watched(make_definite(rng, 60, 100.0)), rng.normal(size=60)
    both = np.stack([v, v + 1e-8 * rng.normal(size=60)], axis=1)
    assert shared(matrix, both, rtol=1e-5).converged
    assert matrix.shapes[0] == (60, 1)


def test_columns_1e_8_apart_are_told_apart_where_the_tolerance_asks_for_it(rng, make_definite):
    matrix, v, difference = make_definite(rng, 60, 100.0), rng.normal(size=60), rng.normal(size=60)
    solution = shared(matrix, np.stack([v, v + 1e-8 * difference], axis=1), rtol=1e-12)
    assert solution.converged
    apart = (solution.x[:, 1] - solution.x[:, 0]) / 1e-8
    np.testing.assert_allclose(apart, np.linalg.solve(matrix, difference), atol=1e-2)


def test_solved_columns_stop_costing_products_once_half_of_the_block_is_solved(rng, make_symmetric, watched):
    matrix, basis = make_symmetric(rng, np.geomspace(1, 1e4, 100))
    # Three columns are eigenvectors but for little, the fourth needs the whole space.
    v = np.column_stack([basis[:, :3] + 1e-4 * rng.normal(size=(100, 3)), rng.normal(size=100)])
    matrix = watched(matrix)
    solution = shared(matrix, v, rtol=1e-3)
    assert solution.converged
    widths = [shape[1] for shape in matrix.shapes[:-1]]
    assert widths[0] == 4
    assert widths[-1] == 1
    assert widths == sorted(widths, reverse=True)


def test_zero_right_hand_sides_need_no_product_but_the_certificate():
    solution = shared(np.eye(5), np.zeros((5, 2)))
    assert (solution.converged, solution.iterations, solution.matvecs) == (True, 0, 2)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_matrices_and_right_hand_sides_of_any_scale(rng, make_definite, scale):
    matrix, v = make_definite(rng, 30, 100.0), rng.normal(size=(30, 3)) * [1.0, 1e20, 1e-20]
    solution = shared(scale * matrix, v, rtol=1e-9)
    assert solution.converged
    np.testing.assert_allclose(scale * solution.x, np.linalg.solve(matrix, v), rtol=1e-5)


# Preconditioner


def test_preconditioner_of_the_inverse_takes_a_step_or_two(rng, make_definite):
    matrix, v = make_definite(rng, 80, 1e6), rng.normal(size=(80, 4))
    inverse = np.linalg.inv(matrix)
    solution = shared(matrix, v, rtol=1e-8, preconditioner=lambda r: inverse @ r)
    assert solution.converged
    assert solution.iterations <= 2


def test_preconditioned_iterates_are_the_best_of_the_preconditioned_space(rng, make_definite):
    matrix, v = make_definite(rng, 40, 1e3), rng.normal(size=(40, 3))
    m = np.diag(rng.uniform(0.5, 2.0, size=40))
    x = shared(matrix, v, rtol=1e-12, max_iterations=3, preconditioner=ihvp.Dense(m)).x
    powers = [np.linalg.matrix_power(m @ matrix, power) @ m @ v for power in range(3)]
    space = np.linalg.qr(np.concatenate(powers, axis=1))[0]
    best = space @ np.linalg.solve(space.T @ matrix @ space, space.T @ v)
    np.testing.assert_allclose(x, best, rtol=1e-7, atol=1e-9)


def test_preconditioner_that_is_not_positive_is_an_error(rng, make_definite):
    with pytest.raises(InvalidOption, match="preconditioner"):
        shared(make_definite(rng, 10, 10.0), rng.normal(size=(10, 3)), preconditioner=lambda r: -r)


@pytest.mark.parametrize("seed", range(6))
def test_preconditioner_that_is_singular_ends_in_a_named_error_and_leaves_zero_columns_solved(seed):
    rng = np.random.default_rng(seed)
    v = np.hstack([np.zeros((40, 2)), rng.normal(size=(40, 3))])
    first, q = (np.arange(40) < 10)[:, None], np.linalg.qr(rng.normal(size=(40, 40)))[0]
    with pytest.raises((SolverError, InvalidOption)) as caught:
        ihvp.solve(
            Opaque((q * np.logspace(-3, 1, 40)) @ q.T),
            v,
            damping=0.1,
            solver=ihvp.CG(rtol=1e-6, preconditioner=lambda r: np.where(first, r, 0.0)),
        )
    if isinstance(caught.value, SolverError):
        x = caught.value.solution.x
        assert np.all(np.isfinite(x))
        np.testing.assert_array_equal(x[:, :2], 0.0)


class Opaque(LinearOperator):
    """A matrix of which only products are known."""

    def __init__(self, matrix):
        self.dense = ihvp.Dense(matrix)
        super().__init__(self.dense.space)

    def apply(self, v):
        return self.dense.apply(v)


def test_preconditioner_that_gives_nan_is_an_error(rng, make_definite):
    with pytest.raises(NonFinite, match="preconditioner"):
        shared(make_definite(rng, 10, 10.0), rng.normal(size=(10, 3)), preconditioner=lambda r: r * np.nan)


# Curvature


def test_negative_curvature_is_found_with_its_direction(rng, make_symmetric):
    matrix, _ = make_symmetric(rng, np.r_[-0.1, np.geomspace(0.1, 10, 29)])
    course = course_of(BlockConjugate, matrix, rng.normal(size=(30, 3)), rtol=1e-10)
    direction = course.direction
    assert direction @ matrix @ direction <= 0
    assert course.solution().stop_reason == "indefinite"


def test_iterates_before_the_negative_curvature_are_kept_on_request(rng, make_symmetric):
    matrix, _ = make_symmetric(rng, np.r_[-0.1, np.geomspace(0.1, 10, 29)])
    v = rng.normal(size=(30, 3))
    course = course_of(BlockConjugate, matrix, v, rtol=1e-10, on_indefinite="truncate")
    assert course.direction is None
    solution = course.solution()
    assert solution.stop_reason == "indefinite"
    assert np.all(np.einsum("pk,pk->k", solution.x, matrix @ solution.x / 2 - v) < 0)


def test_zero_matrix_has_no_curvature(rng):
    course = course_of(BlockConjugate, np.zeros((6, 6)), rng.normal(size=(6, 2)))
    assert course.direction is not None
    np.testing.assert_array_equal(course.solution().x, 0)


def test_non_finite_product_is_an_error(rng):
    with pytest.raises(NonFinite):
        shared(np.diag([1.0, np.nan, 1.0]), rng.normal(size=(3, 2)))


def test_columns_are_given_up_as_lost_where_rounding_hides_the_sign_of_the_curvature(rng, make_symmetric):
    matrix, _ = make_symmetric(rng, np.r_[np.linspace(0.5, 1, 90), np.geomspace(0.1, 1e-8, 10)])
    v = rng.normal(size=(100, 8)).astype(np.float32)
    course = course_of(BlockConjugate, matrix.astype(np.float32), v, rtol=1e-2)
    assert set(course.reasons) == {"lost"}
    assert course.direction is None
    assert not course.solution().converged


# Random systems


@settings(max_examples=150, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 40),
    decades=st.floats(0, 10),
    columns=st.floats(0, 1),
    clusters=st.booleans(),
    kind=st.sampled_from(["random", "repeated", "zero", "near", "graded"]),
)
def test_what_is_solved_is_solved_and_where_separate_columns_are_so_is_the_block(
    make_symmetric, seed, size, decades, columns, clusters, kind
):
    rng = np.random.default_rng(seed)
    values = 10 ** (-decades * rng.uniform(size=size))
    if clusters:
        values = rng.choice(values[:3], size=size) * (1 + 1e-6 * rng.uniform(size=size))
    matrix, _ = make_symmetric(rng, values / values.max())
    v = rng.normal(size=(size, 1 + round(columns * (2 * size - 1))))
    half = v.shape[1] // 2
    if kind == "repeated":
        v[:, v.shape[1] - half :] = v[:, :half]
    elif kind == "zero":
        v[:, :half] = 0
    elif kind == "near":
        v[:, v.shape[1] - half :] = v[:, :half] + 1e-8 * rng.normal(size=(size, half))
    elif kind == "graded":
        v *= 10.0 ** rng.integers(-6, 7, size=v.shape[1])
    rtol = 1e-8

    course = course_of(BlockConjugate, matrix, v, rtol=rtol)

    solution = course.solution()
    residual = np.linalg.norm(v - matrix @ solution.x, axis=0)
    rounding = 4 * size * np.finfo(float).eps * np.linalg.norm(solution.x, axis=0)
    if solution.converged:
        assert np.all(residual <= rtol * np.linalg.norm(v, axis=0) + rounding)
        exact = np.linalg.solve(matrix, v)
        error = np.linalg.norm(solution.x - exact, axis=0)
        allowed = residual + 4 * size * np.finfo(float).eps * np.linalg.norm(exact, axis=0)
        assert np.all(error <= 2 * allowed / np.linalg.eigvalsh(matrix)[0])
    else:
        assert decades > 6, solution.stop_reason
        # Where the rounding of a residual alone is as large as the tolerance, convergence is chance.
        exact = np.linalg.norm(np.linalg.solve(matrix, v), axis=0)
        chance = np.any(4 * size * np.finfo(float).eps * exact > rtol * np.linalg.norm(v, axis=0))
        assert chance or not separate(matrix, v, rtol=rtol).converged or "lost" in course.reasons


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("dtype", "rtol", "condition"),
    # The rounding of the residual itself, about ε condition, is part of what the certificate bounds.
    [(np.float64, 1e-10, 1e5), (np.float32, 1e-5, 1e2), (np.float32, 3e-3, 1e4)],
)
def test_residuals_as_small_as_those_of_separate_columns_for_fewer_products(
    make_definite, seed, dtype, rtol, condition
):
    rng = np.random.default_rng(seed)
    matrix = make_definite(rng, 120, condition, dtype)
    v = rng.normal(size=(120, 6)).astype(dtype)
    block, columns = shared(matrix, v, rtol=rtol), separate(matrix, v, rtol=rtol)
    assert block.converged
    assert block.matvecs < columns.matvecs


# Memory


class Diagonal(LinearOperator):
    """A diagonal matrix, whose products keep the layout of their block."""

    def __init__(self, diagonal):
        super().__init__(VectorSpace.of(diagonal))
        self.diagonal = diagonal

    def apply(self, v):
        return (self.diagonal * v.T).T


def test_four_blocks_are_held(rng):
    v = rng.normal(size=(200_000, 8))
    operator = Diagonal(np.linspace(1, 2, 200_000))
    tracemalloc.start()
    try:
        shared(operator, v, rtol=1e-6)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The iterates, the basis of the residuals, the directions, their product, and slices of work.
    assert peak <= 5 * v.nbytes
