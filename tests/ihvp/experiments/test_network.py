import numpy as np
import pytest
from numpy.testing import assert_allclose

from ihvp.experiments import network


@pytest.fixture
def problem(rng):
    return network.made(rng, inputs=3, hidden=5, examples=7, dtype=float)


def test_the_gradient_is_that_of_the_loss(problem, rng):
    weights, batch = problem
    direction, _ = network.made(rng, inputs=3, hidden=5, examples=1, dtype=float)
    h = 1e-30
    moved = {name: weights[name] + 1j * h * direction[name] for name in weights}
    slope = network.loss(np)(moved, batch).imag / h
    gradient = network.gradient(weights, batch)
    assert sum(np.vdot(gradient[name], direction[name]) for name in weights) == pytest.approx(
        slope, rel=1e-12
    )


def test_the_exact_product_is_that_of_a_known_hessian(toy_hessian):
    def gradient(w, batch):
        error = 4 * (2 * w["a"] * w["b"] - 1)
        return {"a": error * w["b"], "b": error * w["a"]}

    w = {"a": np.ones(1), "b": np.ones(1) / 3}
    v = {"a": np.ones(1), "b": -np.ones(1)}
    product = network.exact_product(gradient, w, None, v)
    assert_allclose(product, toy_hessian @ [1, -1], rtol=1e-14)
