"""Hessian products against closed forms and complex steps."""

from __future__ import annotations

import numpy as np
import pytest

from ihvp.backend import GradientFunction
from ihvp.errors import WrongDtype, WrongShape
from ihvp_numdiff._backend import NumdiffBackend


def relative_error(found, exact):
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize("order", [2, 4])
def test_toy_product_is_exact_to_1e_9(make_toy, order):
    problem = make_toy()
    product = NumdiffBackend(order=order).hvp(problem.gradient, problem.x, None, np.ones(2))
    np.testing.assert_allclose(product, [20 / 9, 28 / 3], rtol=1e-9)


def test_fixed_step_is_absolute_and_gives_the_published_toy_product(make_toy):
    problem = make_toy()
    product = NumdiffBackend(step=1e-2).hvp(problem.gradient, problem.x, None, np.ones(2))
    np.testing.assert_allclose(product, [2.22302222, 9.33413333], atol=1e-8)


def test_fixed_step_is_absolute_whatever_the_length_of_v(make_toy):
    # The truncation error of a fixed step grows with the cube of v, that of a relative one with v.
    problem = make_toy()
    backend = NumdiffBackend(step=1e-2)
    exact = problem.exact_product(np.ones(2))
    error = backend.hvp(problem.gradient, problem.x, None, np.ones(2)) - exact
    error_of_double = backend.hvp(problem.gradient, problem.x, None, 2 * np.ones(2)) - 2 * exact
    np.testing.assert_allclose(error_of_double, 8 * error, rtol=1e-6)


@pytest.mark.parametrize("step", [None, 1e-2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-5)])
def test_linear_chain_has_product_of_ones(step, dtype, tolerance):
    chain = GradientFunction(lambda w, batch: w[::-1].copy())  # of w₁ w₂
    product = NumdiffBackend(step=step).hvp(chain, np.array([0.7, -0.3], dtype), None, np.ones(2, dtype))
    assert product.dtype == dtype
    np.testing.assert_allclose(product, [1, 1], atol=tolerance)


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-7), (np.float32, 1e-3)])
@pytest.mark.parametrize("sizes", [(20, 50, 20, 3), (10, 40, 40, 5), (100, 20, 10)])
@pytest.mark.parametrize("direction", ["random", "gradient", "one weight", "parameters"])
def test_automatic_step_on_tanh_networks(make_network, order, dtype, tolerance, sizes, direction):
    problem = make_network(sizes, seed=0, dtype=dtype)
    directions = {
        "random": np.random.default_rng(1).normal(size=problem.x.size),
        "gradient": problem.formula(problem.x),
        "one weight": np.eye(1, problem.x.size, 7)[0],
        "parameters": problem.x,
    }
    v = directions[direction].astype(dtype)
    product = NumdiffBackend(order=order).hvp(problem.gradient, problem.x, None, v)
    assert 2000 <= problem.x.size <= 2400
    assert relative_error(product, problem.exact_product(v)) < tolerance


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-7), (np.float32, 1e-3)])
def test_automatic_step_does_not_depend_on_the_scale_of_v(make_network, factor, dtype, tolerance):
    problem = make_network((6, 5, 3), seed=2, dtype=dtype)
    v = np.random.default_rng(3).normal(size=problem.x.size).astype(dtype) * dtype(factor)
    product = NumdiffBackend().hvp(problem.gradient, problem.x, None, v)
    exact = problem.exact_product(v / dtype(factor))
    assert relative_error(product.astype(np.float64) / factor, exact) < tolerance


@pytest.mark.parametrize("order", [2, 4])
def test_half_precision_runs_to_its_own_accuracy(make_toy, order):
    problem = make_toy(np.float16)
    product = NumdiffBackend(order=order).hvp(problem.gradient, problem.x, None, np.ones(2, np.float32))
    assert product.dtype == np.float32
    assert relative_error(product, [20 / 9, 28 / 3]) < 3 * np.finfo(np.float16).eps ** (2 / 3)


def test_half_precision_norm_of_many_parameters_does_not_overflow():
    x = np.ones(100_000, np.float16)
    half_squares = GradientFunction(lambda w, batch: w)
    product = NumdiffBackend().hvp(half_squares, x, None, np.ones(x.size, np.float32))
    np.testing.assert_allclose(product, 1, rtol=1e-2)


def test_step_follows_the_coarsest_dtype_of_mixed_parameters():
    params = {"fine": np.array([0.3, 0.2]), "coarse": np.array([0.7, -0.4], np.float32)}

    def gradient(w, batch):  # of Σ exp over all
        return {name: np.exp(array) for name, array in w.items()}

    product = NumdiffBackend().hvp(GradientFunction(gradient), params, None, np.ones(4))
    assert product.dtype == np.float64
    np.testing.assert_allclose(product, np.exp([0.3, 0.2, 0.7, -0.4]), rtol=1e-3)


@pytest.mark.parametrize("step", [None, 1e-3])
@pytest.mark.parametrize("order", [2, 4])
def test_block_equals_its_columns_bit_for_bit(make_network, order, step):
    problem = make_network((6, 5, 3), seed=2)
    backend = NumdiffBackend(order=order, step=step)
    block = np.random.default_rng(4).normal(size=(problem.x.size, 3)) * [1e-8, 1.0, 1e8]
    products = backend.hvp(problem.gradient, problem.x, None, block)
    assert products.shape == block.shape
    for column in range(3):
        alone = backend.hvp(problem.gradient, problem.x, None, block[:, column])
        np.testing.assert_array_equal(products[:, column], alone)


@pytest.mark.parametrize("step", [None, 1e-2])
def test_zero_vector_and_zero_column_give_exact_zeros(make_toy, step):
    problem, backend = make_toy(), NumdiffBackend(step=step)
    np.testing.assert_array_equal(backend.hvp(problem.gradient, problem.x, None, np.zeros(2)), [0, 0])
    block = np.array([[0.0, 1.0], [0.0, 1.0]])
    np.testing.assert_array_equal(backend.hvp(problem.gradient, problem.x, None, block)[:, 0], [0, 0])


@pytest.mark.parametrize("order", [2, 4])
def test_truncation_error_falls_with_the_order_in_the_step(make_exponentials, order):
    problem = make_exponentials()
    v = np.array([1.0, -0.5, 0.8, 0.3])
    steps = np.array([0.02, 0.04, 0.08, 0.16])
    errors = [
        np.linalg.norm(
            NumdiffBackend(step=step, order=order).hvp(problem.gradient, problem.x, None, v)
            - problem.exact_product(v)
        )
        for step in steps
    ]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.05)


@pytest.mark.parametrize("order", [2, 4])
def test_a_product_takes_as_many_gradients_as_its_order(make_toy, order):
    problem, calls = make_toy(), []

    def gradient(w, batch):
        calls.append(w)
        return problem.formula(w)

    NumdiffBackend(order=order).hvp(GradientFunction(gradient), problem.x, None, np.ones(2))
    assert len(calls) == order


def test_batch_reaches_the_gradient():
    scaled = GradientFunction(lambda w, batch: batch["scale"] * w)
    product = NumdiffBackend().hvp(scaled, np.array([1.0, 2.0]), {"scale": 3.0}, np.array([1.0, -1.0]))
    np.testing.assert_allclose(product, [3, -3], rtol=1e-8)


def test_gradient_that_reuses_its_output_buffer_is_differenced_correctly(make_toy):
    problem, buffer = make_toy(), np.empty(2)

    def gradient(w, batch):
        buffer[:] = problem.formula(w)
        return buffer

    product = NumdiffBackend().hvp(GradientFunction(gradient), problem.x, None, np.ones(2))
    np.testing.assert_allclose(product, [20 / 9, 28 / 3], rtol=1e-9)


def test_nothing_of_the_callers_is_changed(make_network):
    problem = make_network((6, 5, 3), seed=2)
    x, v = problem.x.copy(), np.random.default_rng(4).normal(size=(problem.x.size, 2))
    v_before = v.copy()
    backend = NumdiffBackend(order=4)
    backend.hvp(problem.gradient, problem.x, None, v)
    backend.product_error(problem.gradient, problem.x, None, v[:, 0])
    backend.grad(problem.gradient, problem.x, None)
    np.testing.assert_array_equal(problem.x, x)
    np.testing.assert_array_equal(v, v_before)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 2), (2, 0), (2, 1, 1)])
def test_vector_of_the_wrong_shape_is_refused(make_toy, shape):
    problem = make_toy()
    with pytest.raises(WrongShape, match=r"expected \(2,\)"):
        NumdiffBackend().hvp(problem.gradient, problem.x, None, np.ones(shape))


def test_vector_of_another_dtype_is_refused(make_toy):
    problem = make_toy()
    with pytest.raises(WrongDtype, match="float32; expected float64"):
        NumdiffBackend().hvp(problem.gradient, problem.x, None, np.ones(2, np.float32))
