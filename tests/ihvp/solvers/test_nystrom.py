"""Nyström preconditioning: the price of a solve against plain CG, and what the preconditioner is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

import ihvp
from ihvp import errors
from ihvp.operators.base import Shifted
from ihvp.solvers.base import CountedOperator
from ihvp.solvers.nystrom import Nystrom

RTOL = 1e-6


class CountingDense(ihvp.Dense):
    def __init__(self, matrix):
        super().__init__(matrix)
        self.products = 0

    def apply(self, v):
        self.products += 1 if v.ndim == 1 else v.shape[1]
        return super().apply(v)


class DigitsNetwork:
    """The 64-32-10 tanh network on 1,500 digits, P = 2,410: Gauss-Newton matrix and gradients by hand."""

    def __init__(self, training_steps):
        rng = np.random.default_rng(0)
        images, labels = load_digits(return_X_y=True)
        self.x, self.y = images[:1500] / 16, np.eye(10)[labels[:1500]]
        self.w1, self.b1 = rng.normal(size=(64, 32)) / 8, np.zeros(32)
        self.w2, self.b2 = rng.normal(size=(32, 10)) / np.sqrt(32), np.zeros(10)
        for _ in range(training_steps):
            hidden, outer = self.forward()
            outer = (outer - self.y) / len(self.x)
            inner = (outer @ self.w2.T) * (1 - hidden**2)
            self.w2, self.b2 = self.w2 - hidden.T @ outer / 2, self.b2 - outer.sum(0) / 2
            self.w1, self.b1 = self.w1 - self.x.T @ inner / 2, self.b1 - inner.sum(0) / 2

    def forward(self):
        hidden = np.tanh(self.x @ self.w1 + self.b1)
        exponentials = np.exp(hidden @ self.w2 + self.b2)
        return hidden, exponentials / exponentials.sum(axis=1, keepdims=True)

    def gradients(self, rows):
        hidden, p = self.forward()
        return np.stack([self._pull(n, (p - self.y)[n], hidden[n]) for n in rows], axis=1)

    def gauss_newton(self):
        # diag(p) − p pᵀ = S Sᵀ with S = diag(√p) − p √pᵀ, so that G is a product of one tall matrix.
        hidden, p = self.forward()
        n = len(p)
        root = np.sqrt(p)[:, None, :] * np.eye(10) - p[:, :, None] * np.sqrt(p)[:, None, :]
        inner = np.einsum("ncd,hc->ndh", root, self.w2) * (1 - hidden**2)[:, None, :]
        tall = np.concatenate(
            [
                inner.reshape(10 * n, -1),
                root.transpose(0, 2, 1).reshape(10 * n, -1),
                np.einsum("ni,ndh->ndih", self.x, inner).reshape(10 * n, -1),
                np.einsum("nh,ncd->ndhc", hidden, root).reshape(10 * n, -1),
            ],
            axis=1,
        )
        return tall.T @ tall / n

    def _pull(self, n, outer, hidden):
        inner = (self.w2 @ outer) * (1 - hidden**2)
        return np.concatenate(
            [inner, outer, np.outer(self.x[n], inner).ravel(), np.outer(hidden, outer).ravel()]
        )


class Digits:
    """The network, its Gauss-Newton matrix, 1e-5 of the largest eigenvalue, and what plain CG costs."""

    def __init__(self, training_steps):
        self.network = DigitsNetwork(training_steps)
        self.matrix = self.network.gauss_newton()
        self.values, self.basis = scipy.linalg.eigh(self.matrix, driver="evd")
        self.damping = 1e-5 * float(self.values[-1])

    def plain_cg_products(self, v):
        """The products of textbook CG on separate columns, until the true residual is within tolerance.

        It is done in the basis of the eigenvectors, where a product costs next to nothing.
        """
        spectrum = self.values[:, None] + self.damping
        v = self.basis.T @ v.reshape(2410, -1)
        targets = RTOL * np.linalg.norm(v, axis=0)
        x, r = np.zeros_like(v), v.copy()
        p, rr, places, count = r.copy(), (r * r).sum(axis=0), np.arange(v.shape[1]), 0
        while places.size:
            product = spectrum * p
            count += places.size
            step = rr / (p * product).sum(axis=0)
            x[:, places] += step * p
            r = r - step * product
            before, rr = rr, (r * r).sum(axis=0)
            p = r + rr / before * p
            stay = np.sqrt(rr) > targets[places]
            places, r, p, rr = places[stay], r[:, stay], p[:, stay], rr[stay]
        assert np.all(np.linalg.norm(v - spectrum * x, axis=0) <= 1.01 * targets)
        return count


@pytest.fixture(scope="module", params=[0, 200], ids=["initial", "trained"])
def digits(request):
    return Digits(request.param)


def test_the_condition_number_is_that_of_the_bar(digits):
    damped = digits.values + digits.damping
    assert damped[-1] / damped[0] >= 1e5


def test_the_gradients_and_the_matrix_belong_together(digits):
    # For softmax outputs E[gradient gradientᵀ] under the model is the Gauss-Newton matrix; its trace by hand.
    network = digits.network
    hidden, p = network.forward()
    inputs = 1 + (network.x**2).sum(axis=1)
    curvature = p[:, :, None] * np.eye(10) - p[:, :, None] * p[:, None, :]
    first = np.einsum("hc,ncd,hd->nh", network.w2, curvature, network.w2) * (1 - hidden**2) ** 2
    second = np.einsum("ncc->n", curvature) * (1 + (hidden**2).sum(axis=1))
    expected = np.mean(inputs * first.sum(axis=1) + second)
    np.testing.assert_allclose(np.trace(digits.matrix), expected, rtol=1e-10)


def test_one_random_right_hand_side_takes_a_third_of_the_products_of_plain_cg(digits):
    matrix, damping = digits.matrix, digits.damping
    v = np.random.default_rng(1).normal(size=2410)
    operator = CountingDense(matrix)
    solution = ihvp.solve(operator, v, damping, ihvp.CG(rtol=RTOL, preconditioner="nystrom"))
    assert solution.converged
    assert np.linalg.norm(v - matrix @ solution.x - damping * solution.x) <= RTOL * np.linalg.norm(v)
    assert solution.matvecs == operator.products
    assert digits.plain_cg_products(v) >= 3 * solution.matvecs


def test_one_gradient_takes_a_third_of_the_products_of_plain_cg(digits):
    network, matrix, damping = digits.network, digits.matrix, digits.damping
    v = network.gradients([7])
    solution = ihvp.solve(ihvp.Dense(matrix), v[:, 0], damping, ihvp.CG(rtol=RTOL, preconditioner="nystrom"))
    assert digits.plain_cg_products(v) >= 3 * solution.matvecs


def test_sixteen_right_hand_sides_take_a_tenth_of_the_products_of_plain_cg(digits):
    matrix, damping = digits.matrix, digits.damping
    v = np.random.default_rng(1).normal(size=(2410, 16))
    operator = CountingDense(matrix)
    solution = ihvp.solve(operator, v, damping, ihvp.CG(rtol=RTOL, preconditioner="nystrom"))
    residuals = np.linalg.norm(v - matrix @ solution.x - damping * solution.x, axis=0)
    assert np.all(residuals <= RTOL * np.linalg.norm(v, axis=0))
    assert solution.matvecs == operator.products
    assert digits.plain_cg_products(v) >= 10 * solution.matvecs


def test_sixteen_right_hand_sides_take_less_than_half_of_the_products_of_block_cg(digits):
    v = digits.network.gradients(range(16))
    operator = ihvp.Dense(digits.matrix)
    shared, better = (
        ihvp.solve(operator, v, digits.damping, ihvp.CG(rtol=RTOL, preconditioner=preconditioner)).matvecs
        for preconditioner in (None, "nystrom")
    )
    assert better < shared / 2


@pytest.mark.parametrize(("test_matrix", "rank"), [("residuals", 250), ("gaussian", 300)])
def test_a_limited_rank_still_takes_a_fifth_of_the_products_for_sixteen(digits, test_matrix, rank):
    network, matrix, damping = digits.network, digits.matrix, digits.damping
    v = network.gradients(range(16))
    preconditioner = Nystrom(rank=rank, test_matrix=test_matrix)
    solution = ihvp.solve(ihvp.Dense(matrix), v, damping, ihvp.CG(rtol=RTOL, preconditioner=preconditioner))
    assert solution.converged
    assert digits.plain_cg_products(v) >= 5 * solution.matvecs


# What the preconditioner is


def dense_nystrom(matrix, test_matrix):
    """``BΩ (ΩᵀBΩ)⁻¹ (BΩ)ᵀ`` as it is written, and P⁻¹ from its eigenpairs."""
    product = matrix @ test_matrix
    approximation = product @ np.linalg.solve(test_matrix.T @ product, product.T)
    values, vectors = np.linalg.eigh((approximation + approximation.T) / 2)
    rank = test_matrix.shape[1]
    values, vectors = values[-rank:], vectors[:, -rank:]
    inverse = np.eye(len(matrix)) + (vectors * (values[0] / values - 1)) @ vectors.T
    return approximation, inverse


def test_the_sketch_is_the_nystrom_approximation_of_the_paper(rng, make_definite):
    matrix, test_matrix = make_definite(rng, 30, 1e3), rng.normal(size=(30, 8))
    system = Shifted(ihvp.Dense(matrix), 0.01)
    sketch = Nystrom(rank=8).sketch(system)
    for start, stop in ((0, 3), (3, 4), (4, 8)):
        sketch.extend(CountedOperator(system), test_matrix[:, start:stop])
    approximation, inverse = dense_nystrom(matrix + 0.01 * np.eye(30), test_matrix)
    products = np.concatenate([products for _, products in sketch.pairs], axis=1)
    np.testing.assert_allclose(products @ products.T, approximation, atol=1e-12)
    np.testing.assert_allclose(sketch(np.eye(30)), inverse, atol=1e-10)


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), widths=st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_directions_stay_conjugate_as_a_sketch_grows(seed, widths):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(40, 40)))[0]
    system = Shifted(ihvp.Dense((basis * np.geomspace(1, 1e-6, 40)) @ basis.T), 1e-6)
    sketch = Nystrom().sketch(system)
    for width in widths:
        sketch.extend(CountedOperator(system), rng.normal(size=(40, width)))
    directions, products = (np.concatenate(blocks, axis=1) for blocks in zip(*sketch.pairs, strict=True))
    assert sketch.rank == sum(widths)
    np.testing.assert_allclose(directions.T @ products, np.eye(sketch.rank), atol=1e-7)


def test_a_rank_of_three_effective_dimensions_leaves_a_condition_number_below_28(rng):
    # Frangella, Tropp and Udell, theorem 1.1: rank 2 ⌈1.5 d_eff⌉ + 1 does so in expectation.
    values, damping = 1 / np.arange(1, 121.0) ** 2, 1e-2
    rank = 2 * int(np.ceil(1.5 * np.sum(values / (values + damping)))) + 1
    system = Shifted(ihvp.Dense(np.diag(values)), damping)
    conditions = []
    for seed in range(5):
        inverse = Nystrom(rank=rank, test_matrix="gaussian", seed=seed).sketch(system)(np.eye(120))
        spectrum = scipy.linalg.eigvals(inverse @ np.diag(values + damping)).real
        conditions.append(spectrum.max() / spectrum.min())
    assert np.mean(conditions) < 28


def test_a_gaussian_sketch_stops_growing_at_ten_dampings():
    operator = CountingDense(np.diag(0.9 ** np.arange(300)))
    sketch = Nystrom(test_matrix="gaussian").sketch(Shifted(operator, 2e-4))
    assert sketch.rank == sketch.owed == operator.products == 64
    assert sketch.lowest() <= 11 * 2e-4


def test_repeated_columns_count_once(rng, make_definite):
    operator = CountingDense(make_definite(rng, 40, 1e4))
    v = np.repeat(rng.normal(size=(40, 1)), 5, axis=1)
    solution = ihvp.solve(operator, v, solver=ihvp.CG(rtol=1e-8, preconditioner="nystrom"))
    assert solution.converged
    assert solution.matvecs <= 40 + 5  # each direction once, and the certificates


# Solves that share a sketch


def test_a_later_solve_is_cheaper_and_pays_only_for_itself(rng, make_definite):
    matrix = make_definite(rng, 100, 1e6)
    operator = CountingDense(matrix)
    solver = ihvp.CG(rtol=1e-8, preconditioner=Nystrom(rank=80))
    inverse = ihvp.inverse(operator, 1e-6, solver)
    costs = []
    for v in rng.normal(size=(3, 100)):
        before = operator.products
        x = inverse @ v
        assert np.linalg.norm(v - matrix @ x - 1e-6 * x) <= 1e-8 * np.linalg.norm(v)
        costs.append(operator.products - before)
    assert costs[2] < costs[0] / 3


def test_the_set_up_of_a_gaussian_sketch_counts_with_the_first_solve(rng, make_definite):
    operator = CountingDense(make_definite(rng, 50, 1e4))
    solver = ihvp.CG(preconditioner=Nystrom(rank=20, test_matrix="gaussian"))
    prepared = solver.prepare(operator, 1e-4)
    assert operator.products == 20
    solutions = [
        solver.apply(
            prepared, rng.normal(size=50), x0=None, monitor=ihvp.progress.Monitor("", progress=False)
        )
        for _ in range(2)
    ]
    assert sum(solution.matvecs for solution in solutions) == operator.products
    assert solutions[0].matvecs == solutions[0].iterations + 1 + 20


def test_a_warm_start_is_used(rng, make_definite):
    operator = ihvp.Dense(make_definite(rng, 50, 1e4))
    v, solver = rng.normal(size=50), ihvp.CG(rtol=1e-8, preconditioner="nystrom")
    x = ihvp.solve(operator, v, solver=solver).x
    again = ihvp.solve(operator, v, solver=dataclasses.replace(solver, rtol=1e-6), x0=x)
    assert again.matvecs <= 2
    assert again.converged


def test_several_dampings_get_a_sketch_each(rng, make_definite):
    matrix, v = make_definite(rng, 40, 1e6), rng.normal(size=40)
    solver = ihvp.CG(rtol=1e-9, preconditioner="nystrom")
    for damping, solution in zip(
        (1e-1, 1e-5), ihvp.solve(ihvp.Dense(matrix), v, [1e-1, 1e-5], solver), strict=True
    ):
        expected = np.linalg.solve(matrix + damping * np.eye(40), v)
        np.testing.assert_allclose(solution.x, expected, rtol=0, atol=1e-4 * np.linalg.norm(expected))


def test_the_steps_of_the_set_up_count_as_iterations(rng, make_definite):
    operator, steps = ihvp.Dense(make_definite(rng, 40, 1e4)), []
    solver = ihvp.CG(max_iterations=5, preconditioner="nystrom")
    solution = ihvp.solve(
        operator, rng.normal(size=40), solver=solver, callback=steps.append, on_failure="return"
    )
    assert not solution.converged
    assert solution.iterations == len(steps) == len(solution.history) - 1 == 5


# Matrices that are not definite


def test_negative_curvature_is_reported_as_by_plain_cg(rng):
    values = np.r_[-0.5, np.geomspace(1, 1e-3, 39)]
    basis = np.linalg.qr(rng.normal(size=(40, 40)))[0]
    with pytest.raises(errors.IndefiniteCurvature, match="Add damping") as caught:
        ihvp.solve(
            ihvp.Dense((basis * values) @ basis.T),
            rng.normal(size=40),
            solver=ihvp.CG(preconditioner="nystrom"),
        )
    assert caught.value.suggested_damping > 0.5


@pytest.mark.parametrize("test_matrix", ["residuals", "gaussian"])
def test_a_damped_indefinite_matrix_is_solved(rng, test_matrix):
    values = np.r_[-0.5, np.geomspace(1, 1e-3, 59)]
    basis = np.linalg.qr(rng.normal(size=(60, 60)))[0]
    matrix, v = (basis * values) @ basis.T, rng.normal(size=60)
    solver = ihvp.CG(rtol=1e-10, preconditioner=Nystrom(test_matrix=test_matrix))
    solution = ihvp.solve(ihvp.Dense(matrix), v, 0.6, solver)
    np.testing.assert_allclose(solution.x, np.linalg.solve(matrix + 0.6 * np.eye(60), v), rtol=1e-7)


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1, 2, 3, 12, 30]),
    columns=st.sampled_from([None, 1, 4, 40]),
    spectrum=st.sampled_from(["definite", "semi-definite", "indefinite", "zero", "hard"]),
    preconditioner=st.sampled_from(["nystrom", Nystrom(rank=1), Nystrom(test_matrix="gaussian")]),
    on_indefinite=st.sampled_from(["raise", "truncate", "minres"]),
    right=st.sampled_from(["random", "repeated", "zero", "in range"]),
)
def test_no_answer_outside_its_tolerance_is_called_converged(
    seed, size, columns, spectrum, preconditioner, on_indefinite, right
):
    rng = np.random.default_rng(seed)
    values = {
        "definite": np.geomspace(1, 1e-4, size),
        "semi-definite": rng.random(size) * (rng.random(size) < 0.5),
        "indefinite": rng.normal(size=size),
        "zero": np.zeros(size),
        "hard": np.geomspace(1, 10 ** -rng.uniform(6, 14), size),
    }[spectrum]
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    matrix = (basis * values) @ basis.T
    v = rng.normal(size=(size,) if columns is None else (size, columns))
    if right == "repeated" and columns:
        v[:] = v[:, :1]
    v = {"zero": 0 * v, "in range": matrix @ v}.get(right, v)
    solver = ihvp.CG(rtol=RTOL, preconditioner=preconditioner, on_indefinite=on_indefinite)
    try:
        solution = ihvp.solve(ihvp.Dense(matrix), v, solver=solver)
    except errors.SolverError as error:
        assert not error.solution.converged  # noqa: PT017 - only some examples raise
        return
    if solution.converged:
        residual = np.linalg.norm(v - matrix @ solution.x, axis=0)
        assert np.all(residual <= 1.001 * RTOL * np.linalg.norm(v, axis=0))


# Options


@pytest.mark.parametrize(
    "options",
    [{"rank": 0}, {"rank": -1}, {"rank": 2.5}, {"test_matrix": "signs"}, {"seed": -1}, {"seed": "a"}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(errors.InvalidOption, match=next(iter(options))):
        Nystrom(**options)


def test_a_rank_above_p_is_refused():
    with pytest.raises(errors.InvalidOption, match=r"rank is 4; expected at most P = 3"):
        ihvp.solve(ihvp.Dense(np.eye(3)), np.ones(3), solver=ihvp.CG(preconditioner=Nystrom(rank=4)))


@pytest.mark.parametrize("preconditioner", ["jacobi", Nystrom, 3])
def test_an_unknown_preconditioner_is_refused(preconditioner):
    with pytest.raises(errors.InvalidOption, match=r"expected 'nystrom', 'kfac', 'ekfac', an ihvp.Nystrom"):
        ihvp.CG(preconditioner=preconditioner)


def test_a_product_that_is_not_finite_is_an_error():
    with pytest.raises(errors.NonFinite):
        ihvp.solve(ihvp.Dense(np.diag([1.0, np.nan])), np.ones(2), solver=ihvp.CG(preconditioner="nystrom"))


def test_the_same_seed_gives_the_same_answer(rng, make_definite):
    operator, v = ihvp.Dense(make_definite(rng, 60, 1e5)), rng.normal(size=60)
    solver = ihvp.CG(preconditioner=Nystrom(rank=20, test_matrix="gaussian", seed=3))
    np.testing.assert_array_equal(
        ihvp.solve(operator, v, solver=solver).x, ihvp.solve(operator, v, solver=solver).x
    )
