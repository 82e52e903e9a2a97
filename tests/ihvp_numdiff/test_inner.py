"""Differences over another backend's gradient, with a backend written here in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from ihvp.backend import GradientFunction
from ihvp.errors import GradientMismatch, ParameterError
from ihvp_numdiff._backend import NumdiffBackend
from ihvp_numdiff._plugin import ihvp_backend


class Module:
    """Parameters in a container that only its own backend knows."""

    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias


class ModuleBackend:
    """Flattens in an order of its own, bias first, and differentiates a loss by complex steps."""

    device = "pretend:0"

    def flatten(self, params):
        if isinstance(params, dict):
            params = Module(params["weight"], params["bias"])
        if not isinstance(params, Module):
            raise ParameterError(f"{type(params)} is not a Module")
        return np.concatenate([params.bias.ravel(), params.weight.ravel()])

    def unflatten(self, vector, like):
        if isinstance(like, dict):
            return {"weight": vector[1:].reshape(like["weight"].shape), "bias": vector[:1]}
        return Module(vector[1:].reshape(like.weight.shape), vector[:1])

    def grad(self, loss, params, batch):
        x = self.flatten(params)
        shifts = 1e-30j * np.eye(x.size)
        return np.array([loss(self.unflatten(x + s, params), batch).imag / 1e-30 for s in shifts])

    def hvp(self, loss, params, batch, v):
        raise NotImplementedError("no second derivative here")


WEIGHT, BIAS = np.array([[0.3, -0.7]]), np.array([0.2])


def loss(params, batch):
    return np.exp(2 * params.bias).sum() + (params.weight**3).sum() * params.bias[0] * batch


def product_of_loss(v):
    b, (w1, w2) = BIAS[0], WEIGHT[0]
    hessian = 2.0 * np.array(
        [
            [4 * np.exp(2 * b) / 2, 3 * w1**2, 3 * w2**2],
            [3 * w1**2, 6 * w1 * b, 0],
            [3 * w2**2, 0, 6 * w2 * b],
        ]
    )
    return hessian @ v


@pytest.fixture
def backend():
    return NumdiffBackend(ModuleBackend())


@pytest.fixture
def params():
    return Module(WEIGHT.copy(), BIAS.copy())


def test_loss_without_second_derivative_has_products(backend, params):
    v = np.array([[1.0, 0.5], [2.0, 0.0], [-1.0, 3.0]])
    np.testing.assert_allclose(backend.hvp(loss, params, 2.0, v), product_of_loss(v), rtol=1e-8)


def test_flatten_unflatten_grad_and_device_are_those_of_the_inner_backend(backend, params):
    np.testing.assert_array_equal(backend.flatten(params), [0.2, 0.3, -0.7])
    assert isinstance(backend.unflatten(np.ones(3), like=params), Module)
    np.testing.assert_array_equal(backend.grad(loss, params, 2.0), ModuleBackend().grad(loss, params, 2.0))
    assert backend.device == "pretend:0"


def test_factory_takes_the_inner_backend(params):
    inner = ModuleBackend()
    assert ihvp_backend().factory(params, inner=inner, order=4).inner is inner


def test_parameters_are_unchanged(backend, params):
    backend.hvp(loss, params, 2.0, np.ones(3))
    np.testing.assert_array_equal(params.weight, WEIGHT)
    np.testing.assert_array_equal(params.bias, BIAS)


def cubes(params):  # the gradient of ¼ Σ w⁴
    return Module(params.weight**3, params.bias**3)


FORMS = {
    "structure": cubes,
    "flat": lambda params: np.concatenate([params.bias.ravel() ** 3, params.weight.ravel() ** 3]),
    "list in order": lambda params: [params.bias**3, params.weight**3],
    "flat in float32": lambda params: ModuleBackend().flatten(cubes(params)).astype(np.float32),
}


@pytest.mark.parametrize("form", FORMS)
def test_gradient_by_hand_in_any_form(backend, params, form):
    gradient = GradientFunction(lambda params, batch: FORMS[form](params))
    found = backend.grad(gradient, params, None)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, np.array([0.2, 0.3, -0.7]) ** 3, rtol=1e-6)


@pytest.mark.parametrize("form", ["structure", "flat", "list in order"])
def test_product_of_a_gradient_by_hand(backend, params, form):
    gradient = GradientFunction(lambda params, batch: FORMS[form](params))
    product = backend.hvp(gradient, params, None, np.ones(3))
    np.testing.assert_allclose(product, 3 * np.array([0.2, 0.3, -0.7]) ** 2, rtol=1e-8)


def test_gradient_dict_is_matched_by_key_not_by_order(backend):
    params = {"weight": WEIGHT, "bias": BIAS}
    gradient = GradientFunction(lambda p, batch: {"bias": p["bias"] ** 3, "weight": p["weight"] ** 3})
    np.testing.assert_allclose(backend.grad(gradient, params, None), np.array([0.2, 0.3, -0.7]) ** 3)


def test_flat_gradient_that_reuses_its_buffer_is_differenced_correctly(backend, params):
    buffer = np.empty(3)

    def gradient(params, batch):
        buffer[:] = FORMS["flat"](params)
        return buffer

    product = backend.hvp(GradientFunction(gradient), params, None, np.ones(3))
    np.testing.assert_allclose(product, 3 * np.array([0.2, 0.3, -0.7]) ** 2, rtol=1e-8)


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (np.ones(4), "numpy.ndarray of shape"),
        (None, "None"),
        ([np.ones(1), np.ones(5)], "6 numbers; expected 3"),
        (Module(np.ones((2, 2)), np.ones(1)), "5 numbers; expected 3"),
    ],
)
def test_gradient_by_hand_of_another_structure_is_refused(backend, params, wrong, found):
    with pytest.raises(GradientMismatch, match=found):
        backend.grad(GradientFunction(lambda params, batch: wrong), params, None)


def test_gradient_by_hand_of_another_shape_is_refused(backend):
    params = {"weight": WEIGHT, "bias": BIAS}
    transposed = GradientFunction(lambda p, batch: {"weight": p["weight"].T, "bias": p["bias"]})
    with pytest.raises(GradientMismatch, match=r"shape \(2, 1\) at gradient\['weight'\]"):
        backend.grad(transposed, params, None)


class SealedBackend(ModuleBackend):
    """Gives a loss the module with other values, but nobody else."""

    def unflatten(self, vector, like):
        return {"weight": vector[1:].reshape(like.weight.shape), "bias": vector[:1]}


def test_gradient_function_over_a_container_that_takes_no_values_is_refused(params):
    gradient = GradientFunction(lambda params, batch: cubes(params))
    with pytest.raises(ParameterError, match=r"Module cannot be called at other values.*InPlaceWeights"):
        NumdiffBackend(SealedBackend()).hvp(gradient, params, None, np.ones(3))


class NamedBackend(ModuleBackend):
    def blocks(self, params):
        return {"bias": slice(0, 1), "weight": slice(1, 3)}


def test_blocks_are_those_of_the_inner_backend():
    params = Module(WEIGHT, BIAS)
    assert NumdiffBackend(NamedBackend()).blocks(params) == {"bias": slice(0, 1), "weight": slice(1, 3)}
    assert NumdiffBackend(ModuleBackend()).blocks(params) == {"params": slice(0, 3)}
