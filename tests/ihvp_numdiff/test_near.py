"""What a difference costs in memory, and v far from 1 in a small dtype."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from ihvp.backend import GradientFunction
from ihvp_numdiff._backend import NumdiffBackend

_SIZE = 1 << 20


def peak_of(call):
    """The most memory that a call has at once, in vectors of ``_SIZE`` numbers of 4 bytes."""
    tracemalloc.start()
    try:
        result = call()
        return result, tracemalloc.get_traced_memory()[1] / (4 * _SIZE)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("structure", ["one array", "list of arrays"])
def test_a_product_holds_the_point_two_gradients_and_nothing_else(structure):
    x = np.ones((4, _SIZE // 4), np.float32)
    params = x if structure == "one array" else [x[:1], x[1:]]
    leaf = 2.0 if structure == "one array" else None

    def gradient(w, batch):
        return leaf * w if leaf else [2.0 * part for part in w]

    v = np.ones(_SIZE, np.float32)
    product, peak = peak_of(lambda: NumdiffBackend().hvp(GradientFunction(gradient), params, None, v))
    np.testing.assert_allclose(product, 2, rtol=1e-3)
    assert peak < 3.1


@pytest.mark.parametrize("order", [2, 4])
def test_gradient_that_gives_back_its_argument_is_differenced_correctly(order):
    identity, v = GradientFunction(lambda w, batch: w), np.array([1.0, -2.0])
    product = NumdiffBackend(order=order).hvp(identity, np.array([0.5, 3.0]), None, v)
    np.testing.assert_allclose(product, v, rtol=1e-9)


def test_gradient_that_writes_to_its_argument_is_differenced_correctly():
    def gradient(w, batch):
        w *= w
        return w

    x = np.array([0.5, 3.0])
    product = NumdiffBackend().hvp(GradientFunction(gradient), x, None, np.ones(2))
    np.testing.assert_allclose(product, 2 * x, rtol=1e-8)
    np.testing.assert_array_equal(x, [0.5, 3.0])


def test_gradient_that_does_not_depend_on_the_parameters_has_exact_zeros():
    constant = GradientFunction(lambda w, batch: np.full(3, 0.1))  # float64, which float32 rounds
    product = NumdiffBackend().hvp(constant, np.ones(3, np.float32), None, np.ones(3, np.float32))
    np.testing.assert_array_equal(product, np.zeros(3))


@pytest.mark.parametrize("factor", [2.0**-22, 2.0**-14, 1.0, 2.0**14])
def test_half_precision_takes_vectors_of_any_size(factor):
    # The step r alone is beyond float16 at both ends.
    identity, v = GradientFunction(lambda w, batch: w.copy()), np.array([factor, -factor], np.float32)
    product = NumdiffBackend().hvp(identity, np.array([0.5, 0.25], np.float16), None, v)
    np.testing.assert_allclose(product.astype(float), v.astype(float), rtol=2e-2)


def test_empty_arrays_among_the_parameters_are_passed_over():
    params = {"empty": np.zeros((0, 3)), "w": np.array([1.0, 2.0])}
    cubes = GradientFunction(lambda p, batch: {"empty": p["empty"], "w": p["w"] ** 2})
    np.testing.assert_allclose(NumdiffBackend().hvp(cubes, params, None, np.ones(2)), [2, 4], rtol=1e-8)
