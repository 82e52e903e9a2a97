"""Random systems with a known spectrum, and operators that watch or disturb their products."""

from __future__ import annotations

import math

import numpy as np
import pytest

import ihvp
from ihvp.solvers import forecast


@pytest.fixture(autouse=True)
def time_that_does_not_count(monkeypatch):
    """On a machine at its limit even a small solve may look too long; the tests of forecasts set a time."""
    monkeypatch.setattr(forecast, "_SECONDS", math.inf)


def symmetric(rng, eigenvalues):
    """A symmetric matrix with these eigenvalues in a random basis, and the basis."""
    size = len(eigenvalues)
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    matrix = (basis * eigenvalues) @ basis.T
    return (matrix + matrix.T) / 2, basis


class Watched(ihvp.Dense):
    """Keeps the shape of every block that it multiplied."""

    def __init__(self, matrix):
        super().__init__(matrix)
        self.shapes = []

    def apply(self, v):
        self.shapes.append(v.shape)
        return super().apply(v)


class Noisy(ihvp.Dense):
    """Products with a relative error of known size in a random direction, as finite differences have."""

    def __init__(self, matrix, noise):
        super().__init__(matrix)
        self.noise, self.products = noise, 0
        self._rng = np.random.default_rng(0)

    def apply(self, v):
        self.products += 1
        product = super().apply(v)
        error = self._rng.normal(size=product.shape)
        return product + self.product_error(v) * error / np.linalg.norm(error)

    def product_error(self, v):
        return self.noise * float(np.linalg.norm(self.matrix @ v))


@pytest.fixture(scope="session")
def make_symmetric():
    return symmetric


@pytest.fixture
def watched():
    return Watched


@pytest.fixture
def noisy():
    return Noisy
