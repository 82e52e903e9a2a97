"""Products where the sizes of parameters, or the lengths of curvature, have nothing in common."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ihvp
from ihvp.backend import GradientFunction
from ihvp_numdiff._backend import NumdiffBackend

# The first and second derivative of the losses of one margin.
_LOSSES = {
    "tanh": (np.tanh, lambda u: 1 - np.tanh(u) ** 2),
    "logistic": (lambda u: 1 / (1 + np.exp(-u)), lambda u: 1 / (2 + np.exp(-u) + np.exp(u))),
    "quartic": (lambda u: u**3, lambda u: 3 * u**2),
}


class Margins:
    """``Σₙ loss(aₙ · w + bₙ) − yₙ aₙ · w``, whose Hessian ``Aᵀ diag(loss″) A`` is known."""

    def __init__(self, loss, matrix, offset, targets, w):
        self.first, self.second = _LOSSES[loss]
        self.matrix, self.offset, self.targets, self.w = matrix, offset, targets, w
        self.gradients = 0

    @property
    def gradient(self):
        return GradientFunction(self._gradient)

    def _gradient(self, w, batch):
        self.gradients += 1
        return self.matrix.T @ (self.first(self.matrix @ w + self.offset) - self.targets)

    @property
    def hessian(self):
        # Where 80 bits are one of numpy's dtypes, so that the sums of the oracle do not add to the error.
        a, b, w = (np.asarray(each, np.longdouble) for each in (self.matrix, self.offset, self.w))
        return (a.T * self.second(a @ w + b)) @ a

    def errors(self, backend, v):
        """The true and the estimated error in parts of the product."""
        exact = self.hessian @ v
        size = float(np.linalg.norm(exact))
        true = float(np.linalg.norm(backend.hvp(self.gradient, self.w, None, v) - exact))
        return true / size, backend.product_error(self.gradient, self.w, None, v) / size


def margins(seed, kind, loss):
    """Parameters of sizes from 1e-6 to 1e6, and columns of the data which make all of them matter."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 13))
    unit, sizes = rng.standard_normal(size), 10 ** rng.uniform(-6, 6, size)
    w, matrix = unit * sizes, rng.standard_normal((4 * size, size)) / sizes / np.sqrt(size)
    offset = 0.3 * rng.standard_normal(4 * size)
    if kind == "zeros":
        w = w * (rng.random(size) < 0.5)
    elif kind == "all zero":
        w = np.zeros(size)
    elif kind == "longer":  # than the parameters are large
        w = w * 10 ** rng.uniform(-4, 0)
    elif kind == "offset":  # a length of 1 around parameters of any size
        w, matrix = (
            unit * 10 ** rng.uniform(0, 7, size),
            rng.standard_normal((4 * size, size)) / np.sqrt(size),
        )
        offset = rng.standard_normal(4 * size) - matrix @ w
    return Margins(loss, matrix, offset, 0.3 * rng.standard_normal(4 * size), w), rng


def direction(rng, kind, w):
    one = np.eye(w.size)[rng.integers(w.size)]
    return {
        "one": one,
        "ones": np.ones(w.size),
        "of the size of w": rng.standard_normal(w.size) * np.where(w == 0, 1, np.abs(w)),
        "of unlike size": rng.standard_normal(w.size) * 10 ** rng.uniform(-6, 6, w.size),
        "a few": one + rng.standard_normal(w.size) * (rng.random(w.size) < 0.3),
    }[kind]


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["like the data", "zeros", "all zero", "longer", "offset"]),
    loss=st.sampled_from(list(_LOSSES)),
    along=st.sampled_from(["one", "ones", "of the size of w", "of unlike size", "a few"]),
    order=st.sampled_from([2, 4]),
)
def test_product_is_right_or_its_error_known(seed, kind, loss, along, order):
    problem, rng = margins(seed, kind, loss)
    true, estimate = problem.errors(NumdiffBackend(order=order), direction(rng, along, problem.w))
    assert true <= max(1e-4, 3 * estimate)


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("layout", ["one array", "blocks"])
def test_product_over_eighteen_decades_is_right_for_every_column(layout, order):
    rng = np.random.default_rng(0)
    sizes = 10.0 ** np.arange(-9, 10, 3)
    w, matrix = sizes * rng.uniform(0.5, 2, 7), rng.standard_normal((30, 7)) / sizes
    problem = Margins("logistic", matrix, rng.standard_normal(30), np.zeros(30), w)
    block = np.column_stack([np.eye(7), np.ones(7), sizes])
    params = w if layout == "one array" else {"a": w[:2], "b": w[2:].reshape(1, 5)}

    def gradient(w, batch):
        return problem._gradient(w if layout == "one array" else np.r_[w["a"], w["b"][0]], batch)

    products = NumdiffBackend(order=order).hvp(GradientFunction(gradient), params, None, block)
    exact = problem.hessian @ block
    assert np.all(np.linalg.norm(products - exact, axis=0) <= 1e-6 * np.linalg.norm(exact, axis=0))


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("weight", [1e4, 1e6, 1e8])
def test_length_of_curvature_is_found_beside_a_large_weight(weight, order):
    sine = GradientFunction(lambda w, batch: np.array([np.sin(w[0] - weight), w[1] ** 3]))
    product = NumdiffBackend(order=order).hvp(sine, np.array([weight, 1.0]), None, np.array([1.0, 0.0]))
    np.testing.assert_allclose(product, [1, 0], atol=1e-4)


def test_parts_keep_the_noise_of_a_strong_loss_off_a_weak_one():
    # One difference along both would move the second by too much, or the first by too little.
    w = np.array([3e4, 2e-5])
    curvature, length = np.array([1e2, 1.0]), w
    sines = GradientFunction(lambda w, batch: curvature * length * np.sin(w / length))
    product = NumdiffBackend().hvp(sines, w, None, np.ones(2))
    assert np.linalg.norm(product - curvature * np.cos(1)) < 1e-4 * np.linalg.norm(curvature)


@pytest.mark.parametrize("order", [2, 4])
def test_estimate_covers_a_length_of_curvature_that_sizes_hide(order):
    # Sizes near 1 ask for no search, and half the step agrees with nothing here.
    rng = np.random.default_rng(1)
    w, matrix = np.array([1.0, -0.7, 0.5, 0.9]), rng.standard_normal((20, 4)) * [1.0, 1e8, 1e3, 1.0]
    problem = Margins("tanh", matrix, rng.standard_normal(20) - matrix @ w, np.zeros(20), w)
    true, estimate = problem.errors(NumdiffBackend(order=order), np.ones(4))
    assert true > 0.5
    assert true / 3 < estimate < 3 * true


@pytest.mark.parametrize("step", [1e2, 1e4])
def test_estimate_covers_a_fixed_step_beyond_all_lengths(step):
    # The gradients on both sides vanish, and those of half the step.
    bump = GradientFunction(lambda w, batch: w * np.exp(-w * w / 2))
    estimate = NumdiffBackend(step=step).product_error(bump, np.array([0.0, 0.1]), None, np.ones(2))
    assert estimate == pytest.approx(np.hypot(1, 0.985), rel=0.01)


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("last", [0.3, 1e-2, 0.0])
def test_sizes_of_an_ordinary_network_cost_nothing(order, last):
    rng = np.random.default_rng(0)
    weights, biases = 0.02 * rng.standard_normal((30, 50)), np.zeros(50)
    params = {"weights": weights, "gains": np.ones(50), "biases": biases, "last": np.full(3, last)}
    calls = []

    def gradient(w, batch):
        calls.append(w)
        return {name: np.tanh(array) for name, array in w.items()}

    backend, v = NumdiffBackend(order=order), rng.standard_normal(1603)
    backend.hvp(GradientFunction(gradient), params, None, v)
    backend.hvp(GradientFunction(gradient), params, None, np.eye(1603)[1560])
    assert len(calls) == 2 * order


def test_fixed_step_is_not_searched():
    problem, _ = margins(0, "like the data", "tanh")
    v = np.ones(problem.w.size)
    product = NumdiffBackend(step=1e-3).hvp(problem.gradient, problem.w, None, v)
    above, below = (problem._gradient(problem.w + sign * 1e-3 * v, None) for sign in (1, -1))
    np.testing.assert_allclose(product, (above - below) / 2e-3, rtol=1e-12)


def test_single_precision_is_right_to_its_own_accuracy():
    rng = np.random.default_rng(3)
    sizes = np.array([1e-4, 1.0, 1e4], np.float32)
    w, matrix = sizes * np.float32(0.7), (rng.standard_normal((40, 3)) / sizes).astype(np.float32)
    problem = Margins("logistic", matrix, np.zeros(40, np.float32), np.zeros(40, np.float32), w)
    for v in np.eye(3, dtype=np.float32):
        true, estimate = problem.errors(NumdiffBackend(), v)
        assert true < 5e-3
        assert true <= 3 * estimate


def test_linear_loss_has_zero_products_beside_unlike_sizes():
    constant = GradientFunction(lambda w, batch: np.array([1.0, 2.0, 3.0]))
    w = np.array([1e6, 1e-6, 0.0])
    np.testing.assert_array_equal(NumdiffBackend().hvp(constant, w, None, np.ones(3)), np.zeros(3))
    assert NumdiffBackend().product_error(constant, w, None, np.ones(3)) < 1e-8


def test_gradient_that_overflows_at_long_steps_is_searched_at_short_ones():
    exponentials = GradientFunction(lambda w, batch: np.exp(w * [1e9, 1.0]))
    with np.errstate(over="ignore", invalid="ignore"):
        product = NumdiffBackend().hvp(exponentials, np.zeros(2), None, np.array([1.0, 0.0]))
    np.testing.assert_allclose(product, [1e9, 0], rtol=1e-6)


@pytest.mark.parametrize("order", [2, 4])
def test_solve_beside_unlike_sizes_is_certified_by_the_true_hessian(order):
    rng = np.random.default_rng(0)
    sizes = np.array([3e2, 0.5, 2e-3])
    matrix = rng.standard_normal((50, 3)) / sizes
    problem = Margins("tanh", matrix, np.zeros(50), np.zeros(50), 1e2 * np.array([3e2, 0.5, 2e-3]))
    problem.offset = rng.standard_normal(50) - matrix @ problem.w
    hessian = problem.hessian.astype(float)
    v = hessian @ (sizes * [1.0, -2.0, 0.5])
    with ihvp.use("numdiff", order=order):
        H = ihvp.Hessian(ihvp.Objective(params=problem.w, data=np.zeros((1, 1)), grad=problem._gradient))
    solution = ihvp.solve(H, v, solver=ihvp.CG(rtol=1e-5))
    assert np.linalg.norm(hessian @ solution.x - v) <= 2e-5 * np.linalg.norm(v)


def test_gradient_that_is_nan_everywhere_gives_nan():
    nan, w = GradientFunction(lambda w, batch: np.full_like(w, np.nan)), np.array([1e6, 1e-6])
    assert np.all(np.isnan(NumdiffBackend().hvp(nan, w, None, np.ones(2))))
    assert np.isnan(NumdiffBackend().product_error(nan, w, None, np.ones(2)))


def test_gradient_that_is_nan_at_the_first_step_is_searched_at_shorter_ones():
    # Defined for |w| < 1e-9 alone.
    logarithms = GradientFunction(lambda w, batch: np.log1p(1e9 * w))
    with np.errstate(invalid="ignore", divide="ignore"):
        product = NumdiffBackend().hvp(logarithms, np.zeros(2), None, np.ones(2))
    np.testing.assert_allclose(product, [1e9, 1e9], rtol=1e-5)
