"""The Hessian of an objective, with a backend in closed form and by finite differences."""

from __future__ import annotations

import numpy as np
import pytest

import ihvp
from ihvp import errors

W = np.array([0.5, -1.0, 2.0])


def exact(rows):
    x, _ = rows
    return x.T @ x / len(x)


def ragged(rows):
    x, y = rows
    return [(x[:3], y[:3]), (x[3:6], y[3:6]), (x[6:], y[6:])]


def hessian(backend, data, params=W, **options):
    return ihvp.Hessian(ihvp.Objective(backend.loss, params, data, backend=backend, **options))


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 4)])
def test_product_is_exact(regression, rows, rng, shape):
    v = rng.normal(size=shape)
    np.testing.assert_allclose(hessian(regression, rows) @ v, exact(rows) @ v, rtol=1e-13)


def test_ragged_batches_equal_one_batch(regression, rows):
    np.testing.assert_allclose(hessian(regression, ragged(rows)).to_dense(), exact(rows), rtol=1e-13)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7])
def test_batch_size_does_not_change_the_product(regression, rows, batch_size):
    found = hessian(regression, rows, batch_size=batch_size).to_dense()
    np.testing.assert_allclose(found, exact(rows), rtol=1e-13)


def test_summed_loss_gives_the_same_mean(sum_regression, rows):
    found = hessian(sum_regression, ragged(rows), reduction="sum").to_dense()
    np.testing.assert_allclose(found, exact(rows), rtol=1e-13)


def test_block_costs_one_pass_over_the_data(regression, rows):
    class Loader:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter(ragged(rows))

    loader = Loader()
    matrix = hessian(regression, loader)
    matrix @ np.ones((3, 5))
    before = loader.passes
    matrix @ np.ones((3, 5))
    assert loader.passes - before == 1


def test_vector_in_the_structure_of_the_parameters_comes_back_in_it(regression, rows):
    params = {"w": W[:2].copy(), "b": W[2:].copy()}
    v = {"b": np.array([3.0]), "w": np.array([1.0, 2.0])}
    product = hessian(regression, rows, params) @ v
    expected = exact(rows) @ np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(product["w"], expected[:2], rtol=1e-13)
    np.testing.assert_allclose(product["b"], expected[2:], rtol=1e-13)


def test_toy_product_is_exact(toy_gradient_function):
    objective = ihvp.Objective(params=np.array([1.0, 1 / 3]), grad=toy_gradient_function)
    np.testing.assert_allclose(ihvp.Hessian(objective) @ np.ones(2), [20 / 9, 28 / 3], rtol=1e-7)


def test_toy_product_with_the_notebooks_step():
    with ihvp.use("numdiff", step=1e-2):
        objective = ihvp.Objective(
            params=np.array([1.0, 1 / 3]), grad=lambda w, b: 4 * (2 * w[0] * w[1] - 1) * w[::-1]
        )
    np.testing.assert_allclose(ihvp.Hessian(objective) @ np.ones(2), [2.22302222, 9.33413333], atol=1e-6)


def test_product_belongs_to_the_parameters_of_the_moment():
    params = np.array([1.0, 2.0])
    matrix = ihvp.Hessian(ihvp.Objective(params=params, grad=lambda w, b: w**2))
    np.testing.assert_allclose(matrix @ np.ones(2), [2, 4], rtol=1e-6)
    params *= 3
    np.testing.assert_allclose(matrix @ np.ones(2), [6, 12], rtol=1e-6)


def test_product_that_is_not_finite_names_the_batch(regression, rows):
    data = ragged(rows)
    data[1] = (np.full((3, 3), np.nan), data[1][1])
    with pytest.raises(errors.NonFinite, match=r"A product with the Hessian is not finite .* on batch 1"):
        hessian(regression, data) @ W


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_v_that_is_not_finite_is_named_as_the_cause(regression, rows, bad):
    with np.errstate(invalid="ignore"), pytest.raises(errors.VectorError, match="v holds NaN or infinite"):
        hessian(regression, rows) @ np.array([1.0, bad, 0.0])


@pytest.mark.parametrize(
    ("v", "cls"),
    [
        (np.ones(4), errors.WrongShape),
        (np.ones((4, 2)), errors.WrongShape),
        (np.ones(3, np.float32), errors.WrongDtype),
        (np.ones(3, int), errors.WrongDtype),
    ],
)
def test_v_of_the_wrong_length_or_dtype_is_refused_before_any_product(regression, rows, v, cls):
    with pytest.raises(cls):
        hessian(regression, rows) @ v
    assert regression.products == 0


def test_product_error_of_exact_backends_is_zero(regression, rows):
    assert hessian(regression, rows).product_error(W) == 0.0


def test_product_error_bounds_that_of_finite_differences(rows):
    x, y = rows
    data = [(x[:4], y[:4]), (x[4:], y[4:])]

    def gradient(w, batch):
        inputs, targets = batch
        return inputs.T @ (np.tanh(inputs @ w) - targets) / len(targets)

    matrix = ihvp.Hessian(ihvp.Objective(params=W, data=data, grad=gradient))
    v = np.array([1.0, 2.0, -1.0])
    true = x.T @ ((1 - np.tanh(x @ W) ** 2) * (x @ v)) / len(y)
    error = np.linalg.norm(matrix @ v - true)
    assert 0 < matrix.product_error(v) < 1e-6
    assert error <= 10 * matrix.product_error(v)
