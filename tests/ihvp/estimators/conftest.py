"""Matrices with known traces, diagonals and spectra."""

from __future__ import annotations

import numpy as np
import pytest


def rotated(seed, values):
    """A symmetric matrix with these eigenvalues in a random basis."""
    values = np.asarray(values, dtype=np.float64)
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(values.size, values.size)))[0]
    matrix = (basis * values) @ basis.T
    return (matrix + matrix.T) / 2


@pytest.fixture
def make_rotated():
    return rotated


@pytest.fixture(params=["decaying", "flat", "indefinite"])
def spectrum(request):
    """Sixty eigenvalues."""
    return {
        "decaying": 0.8 ** np.arange(60),
        "flat": np.linspace(1, 2, 60),
        "indefinite": np.linspace(-1, 2, 60) ** 3,
    }[request.param]
