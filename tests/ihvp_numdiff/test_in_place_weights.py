"""Weights that live in a framework: evaluated elsewhere, and always put back."""

from __future__ import annotations

import numpy as np
import pytest

from ihvp.backend import GradientFunction
from ihvp.errors import GradientRequired, ParameterError
from ihvp_numdiff import InPlaceWeights
from ihvp_numdiff._backend import NumdiffBackend


class Framework:
    """Two weights held in place, in the manner of a value-based framework: squared error of w₁ w₂ x."""

    def __init__(self):
        self.held = {"first": np.array([[1.0]]), "second": np.array([[1 / 3]])}
        self.failure = None

    def read(self):
        return self.held  # views of live memory

    def write(self, values):
        for name, value in values.items():
            self.held[name][...] = value

    def grad(self, params, batch):
        if self.failure is not None and self.held["first"] != 1:
            raise self.failure
        x, y = batch
        first, second = self.held["first"], self.held["second"]
        residual = 2 * (first * second * x - y) * x
        return {"first": residual * second, "second": residual * first}


BATCH = (2.0, 1.0)


@pytest.fixture
def framework():
    return Framework()


@pytest.fixture
def weights(framework):
    return InPlaceWeights(framework.read, framework.write)


@pytest.fixture
def bits(framework):
    """The bytes of the weights now, to compare with later."""
    return lambda: {name: array.tobytes() for name, array in framework.held.items()}


@pytest.mark.parametrize("order", [2, 4])
def test_product_is_that_of_ordinary_parameters(framework, weights, order):
    product = NumdiffBackend(order=order).hvp(GradientFunction(framework.grad), weights, BATCH, np.ones(2))
    np.testing.assert_allclose(product, [20 / 9, 28 / 3], rtol=1e-9)


def test_blocks_are_the_arrays_that_are_read(weights):
    assert NumdiffBackend().blocks(weights) == {
        "first": slice(0, 1),
        "second": slice(1, 2),
    }


def test_gradient_is_taken_at_the_live_weights_without_writing(framework):
    def write(values):
        raise AssertionError("nothing to write")

    weights = InPlaceWeights(framework.read, write)
    gradient = NumdiffBackend().grad(GradientFunction(framework.grad), weights, BATCH)
    np.testing.assert_allclose(gradient, [-4 / 9, -4 / 3], rtol=1e-15)


def test_weights_are_restored_bit_for_bit(framework, weights, bits):
    before, backend = bits(), NumdiffBackend()
    backend.hvp(GradientFunction(framework.grad), weights, BATCH, np.ones((2, 3)))
    backend.product_error(GradientFunction(framework.grad), weights, BATCH, np.ones(2))
    assert bits() == before


@pytest.mark.parametrize("order", [2, 4])
def test_weights_of_unlike_size_have_products_and_are_restored(order):
    held = np.array([3e4, 0.5, 2e-5, 0.0])
    lengths = np.array([3e4, 0.5, 2e-5, 1.0])
    weights = InPlaceWeights(read=lambda: held, write=lambda values: np.copyto(held, values))
    sines = GradientFunction(lambda weights, batch: np.sin(held / lengths))
    before = held.tobytes()
    product = NumdiffBackend(order=order).hvp(sines, weights, None, np.ones(4))
    np.testing.assert_allclose(product, np.cos(held / lengths) / lengths, rtol=1e-6, atol=1e-6)
    assert held.tobytes() == before


@pytest.mark.parametrize("failure", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_weights_are_restored_when_the_gradient_raises(framework, weights, bits, failure):
    before, framework.failure = bits(), failure
    with pytest.raises(type(failure)) as caught:
        NumdiffBackend().hvp(GradientFunction(framework.grad), weights, BATCH, np.ones(2))
    assert caught.value is failure
    assert bits() == before


def test_weights_are_restored_when_the_gradient_is_nan(framework, weights, bits):
    before = bits()
    nan = GradientFunction(lambda params, batch: np.full(2, np.nan))
    assert np.isnan(NumdiffBackend().hvp(nan, weights, BATCH, np.ones(2))).all()
    assert bits() == before


def test_weights_are_restored_when_writing_fails_halfway(framework, bits):
    before, failing = bits(), [True]

    def write(values):
        framework.held["first"][...] = values["first"]
        if failing.pop() if failing else False:
            raise OSError("halfway")
        framework.held["second"][...] = values["second"]

    with pytest.raises(OSError, match="halfway"):
        NumdiffBackend().hvp(
            GradientFunction(framework.grad), InPlaceWeights(framework.read, write), BATCH, np.ones(2)
        )
    assert bits() == before


def test_failure_to_restore_says_so_and_keeps_the_first_error(framework):
    attempts = []

    def write(values):
        attempts.append(values)
        raise OSError(f"attempt {len(attempts)}")

    with pytest.raises(OSError, match="attempt 2") as caught:
        NumdiffBackend().hvp(
            GradientFunction(framework.grad), InPlaceWeights(framework.read, write), BATCH, np.ones(2)
        )
    assert str(caught.value.__context__) == "attempt 1"
    assert "could not be written back" in caught.value.__notes__[0]


def test_gradient_function_receives_the_weights(weights):
    seen = []

    def gradient(params, batch):
        seen.append(params)
        return np.zeros(2)

    NumdiffBackend().hvp(GradientFunction(gradient), weights, BATCH, np.ones(2))
    assert seen == [weights, weights]


def test_gradient_that_is_a_view_of_live_memory_is_copied_before_restoring(framework, weights):
    def view_of_weights(params, batch):  # of ½ ‖w‖²
        return framework.held

    product = NumdiffBackend().hvp(GradientFunction(view_of_weights), weights, BATCH, np.array([1.0, 2.0]))
    np.testing.assert_allclose(product, [1, 2], rtol=1e-9)


def test_unflattened_weights_work_as_parameters(framework, weights, bits):
    backend, before = NumdiffBackend(), bits()
    vector = np.array([0.5, 2.0])
    elsewhere = backend.unflatten(vector, like=weights)
    np.testing.assert_array_equal(backend.flatten(elsewhere), vector)
    gradient = backend.grad(GradientFunction(framework.grad), elsewhere, BATCH)
    np.testing.assert_allclose(gradient, [8, 2], rtol=1e-15)
    product = backend.hvp(GradientFunction(framework.grad), elsewhere, BATCH, np.ones(2))
    np.testing.assert_allclose(product, [32 + 12, 12 + 2], rtol=1e-9)
    twice = backend.unflatten(vector + 1, like=elsewhere)
    np.testing.assert_array_equal(backend.flatten(twice), vector + 1)
    assert bits() == before


def test_flatten_reads_the_weights(weights):
    np.testing.assert_array_equal(NumdiffBackend().flatten(weights), [1, 1 / 3])


def test_one_array_may_be_the_weights():
    held = np.array([3.0, 2.0])
    weights = InPlaceWeights(lambda: held, lambda values: np.copyto(held, values))
    gradient = GradientFunction(lambda params, batch: held**2)
    np.testing.assert_allclose(NumdiffBackend().hvp(gradient, weights, None, np.ones(2)), [6, 4], rtol=1e-9)


def test_loss_over_weights_in_place_asks_for_its_gradient(weights):
    with pytest.raises(GradientRequired, match="weights that are set in place"):
        NumdiffBackend().hvp(lambda params, batch: 0.0, weights, BATCH, np.ones(2))


def test_weights_that_are_no_floating_arrays_are_refused():
    weights = InPlaceWeights(lambda: [np.arange(3)], lambda values: None)
    with pytest.raises(ParameterError, match="int64"):
        NumdiffBackend().flatten(weights)


def test_class_is_attributed_to_the_plugin_so_that_it_is_inferred():
    from ihvp_numdiff._plugin import ihvp_backend

    assert InPlaceWeights.__module__.split(".")[0] in ihvp_backend().types
