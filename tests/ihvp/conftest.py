"""Backends and problems in plain numpy, so that the core is tested without a framework."""

from __future__ import annotations

import numpy as np
import pytest

from ihvp.backend import GradientFunction

TOY_HESSIAN = np.array([[8 / 9, 4 / 3], [4 / 3, 8.0]])


class LinearRegression:
    """A backend that knows one loss, ``mean (x w − y)² / 2``, in closed form.

    The ``loss`` that it is given is called with every gradient, so that a test can spoil it.
    """

    device = "cpu"

    def __init__(self):
        self.gradients = self.products = 0

    def flatten(self, params):
        return np.concatenate([np.asarray(leaf).reshape(-1) for leaf in _leaves(params)])

    def unflatten(self, vector, like):
        if isinstance(like, dict):
            out, start = {}, 0
            for key, leaf in like.items():
                out[key] = vector[start : start + leaf.size].reshape(leaf.shape)
                start += leaf.size
            return out
        return vector.reshape(like.shape)

    def grad(self, loss, params, batch):
        self.gradients += 1
        x, y = _rows(batch)
        gradient = x.T @ (x @ self.flatten(params) - y) / len(y)
        return gradient * loss(params, batch)

    def hvp(self, loss, params, batch, v):
        self.products += 1 if v.ndim == 1 else v.shape[1]
        x, y = _rows(batch)
        return x.T @ (x @ v) / len(y) * loss(params, batch)


class SumRegression(LinearRegression):
    """The same with the sum in place of the mean."""

    def grad(self, loss, params, batch):
        return super().grad(loss, params, batch) * len(_rows(batch)[1])

    def hvp(self, loss, params, batch, v):
        return super().hvp(loss, params, batch, v) * len(_rows(batch)[1])


def unspoilt(params, batch):
    """The loss that leaves the backend's numbers as they are."""
    return 1.0


def _rows(batch):
    return (batch["x"], batch["y"]) if hasattr(batch, "keys") else batch


def _leaves(params):
    return params.values() if isinstance(params, dict) else [params]


def toy_gradient(w, batch):
    """The gradient of ``(2 w₁ w₂ − 1)²``: two weights in a row, squared error, the one example (2, 1)."""
    return 4 * (2 * w[0] * w[1] - 1) * w[::-1]


def definite(rng, size, condition, dtype=np.float64):
    """A symmetric positive definite matrix in a random basis, eigenvalues from 1/condition to 1."""
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    values = np.geomspace(1, 1 / condition, size)
    matrix = (basis * values) @ basis.T
    return ((matrix + matrix.T) / 2).astype(dtype)


@pytest.fixture
def rng():
    return np.random.default_rng(20240)


@pytest.fixture
def toy_hessian():
    return TOY_HESSIAN.copy()


@pytest.fixture
def toy_gradient_function():
    return toy_gradient


@pytest.fixture
def make_definite():
    return definite


@pytest.fixture
def regression():
    """The backend, with the loss that goes with it as ``.loss``."""
    backend = LinearRegression()
    backend.loss = unspoilt
    return backend


@pytest.fixture
def sum_regression():
    backend = SumRegression()
    backend.loss = unspoilt
    return backend


@pytest.fixture
def rows(rng):
    """Seven examples with three features."""
    return rng.normal(size=(7, 3)), rng.normal(size=7)


@pytest.fixture
def quadratic():
    """A function that makes the gradient of ``wᵀ A w / 2`` as a GradientFunction."""
    return lambda matrix: GradientFunction(lambda w, batch: matrix @ w)
