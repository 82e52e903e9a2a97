"""The estimate of a product's error against the true error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ihvp.backend import GradientFunction
from ihvp_numdiff._backend import NumdiffBackend


def errors(problem, backend, seed):
    """The estimated and the true error of one random product."""
    v = np.random.default_rng(seed).normal(size=problem.x.size).astype(problem.x.dtype)
    product = backend.hvp(problem.gradient, problem.x, None, v).astype(np.float64)
    true = np.linalg.norm(product - problem.exact_product(v))
    return backend.product_error(problem.gradient, problem.x, None, v), true


# Not the toy: its gradient is a cubic, which order 4 differentiates without truncation.
@pytest.mark.parametrize("make_problem", ["exponentials", "softmax", "network"], indirect=True)
@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_truncation_is_estimated_within_a_factor_of_2(make_problem, order, seed):
    step = 0.02 if order == 2 else 0.05
    estimate, true = errors(make_problem(np.float64), NumdiffBackend(step=step, order=order), seed)
    assert true / 2 < estimate < 2 * true


def assert_calibrated(problem, backend):
    # One rounding error of few numbers may be small by chance: never far below, and right in the middle.
    ratios = [estimate / true for estimate, true in (errors(problem, backend, seed) for seed in range(15))]
    assert min(ratios) > 0.1
    assert 0.5 < np.median(ratios) < 5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", [2, 4])
def test_rounding_is_estimated(make_problem, dtype, order):
    step = 1e-3 * float(np.finfo(dtype).eps) ** (1 / 3)
    assert_calibrated(make_problem(dtype), NumdiffBackend(step=step, order=order))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", [2, 4])
def test_automatic_step_is_estimated(make_problem, dtype, order):
    assert_calibrated(make_problem(dtype), NumdiffBackend(order=order))


@pytest.mark.parametrize("step", [1e-16, 1e-18, 1e-30])
def test_step_that_is_lost_in_rounding_is_found(make_network, step):
    problem = make_network((6, 5, 3), seed=2)
    estimate, true = errors(problem, NumdiffBackend(step=step), seed=0)
    assert true / 10 < estimate < 10 * true


@settings(max_examples=100)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(5, 30),
    step=st.none() | st.floats(-7, -1).map(lambda exponent: 10.0**exponent),
    order=st.sampled_from([2, 4]),
    noise=st.sampled_from([0.0, 1e-12, 1e-8]),
)
def test_estimate_never_falls_far_below_the_true_error(seed, size, step, order, noise):
    # Sines of random frequencies, with the noise of a gradient that is computed inexactly. From five
    # parameters on, noise that cancels by chance in all of them at once is out of the question.
    rng = np.random.default_rng(seed)
    matrix, phase, x = rng.normal(size=(size, size)), rng.normal(size=size), rng.normal(size=size)
    v = rng.normal(size=size)

    def gradient(w, batch):
        return matrix.T @ np.sin(matrix @ w + phase) + noise * rng.normal(size=size)

    backend = NumdiffBackend(step=step, order=order)
    exact = matrix.T @ (np.cos(matrix @ x + phase) * (matrix @ v))
    true = np.linalg.norm(backend.hvp(GradientFunction(gradient), x, None, v) - exact)
    assert backend.product_error(GradientFunction(gradient), x, None, v) > true / 20


def test_zero_vector_has_no_error(make_toy):
    problem = make_toy()
    assert NumdiffBackend().product_error(problem.gradient, problem.x, None, np.zeros(2)) == 0.0


def test_exact_products_are_granted_the_rounding_of_their_dtype():
    identity = GradientFunction(lambda w, batch: w)
    estimate = NumdiffBackend(step=0.5).product_error(identity, np.ones(4), None, np.ones(4))
    assert np.finfo(np.float64).eps < estimate < 1e-14


def test_estimate_scales_with_v(make_network):
    problem = make_network((6, 5, 3), seed=2)
    v = np.random.default_rng(0).normal(size=problem.x.size)
    backend = NumdiffBackend()
    small = backend.product_error(problem.gradient, problem.x, None, v * 2.0**-60)
    assert small == backend.product_error(problem.gradient, problem.x, None, v) * 2.0**-60


def test_nan_gradient_gives_nan():
    nan = GradientFunction(lambda w, batch: np.full_like(w, np.nan))
    assert np.isnan(NumdiffBackend().product_error(nan, np.ones(2), None, np.ones(2)))
