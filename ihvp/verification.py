"""What is checked of a loss before anything is computed with it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ihvp import algebra
from ihvp.backend import Batch, CurvatureBackend, Params
from ihvp.errors import LossIndependentOfParameters, NonDeterministicGradient, NonFinite
from ihvp.space import VectorSpace


def verify_loss(
    backend: CurvatureBackend, loss: Any, params: Params, batch: Batch, space: VectorSpace
) -> None:
    """Check the gradient of the first batch: finite, the same twice, not identically zero.

    Raises
    ------
    LossNotScalar, LossIndependentOfParameters, NonFinite, NonDeterministicGradient
    """
    one = backend.grad(loss, params, batch)
    two = backend.grad(loss, params, batch)
    if not algebra.all_finite(one):
        raise NonFinite("The gradient", 0)
    size = float(algebra.norms(one))
    difference = np.inf
    if algebra.all_finite(two):
        difference = float(algebra.norms(algebra.axpy(two, -1.0, one)))
    del one, two
    # Parallel sums may differ in their last bits from call to call; dropout differs by far more.
    allowed = space.eps**0.5
    if difference <= allowed * size and size > 0:
        return
    # At an optimum the gradient is as small as its own rounding, or zero: its size elsewhere tells.
    noise = space.asarray(np.random.default_rng(0).standard_normal(space.size))
    elsewhere = backend.unflatten(backend.flatten(params) + noise, params)
    size = float(algebra.norms(backend.grad(loss, elsewhere, batch)))
    if size == 0.0:
        raise LossIndependentOfParameters(
            "its gradient on batch 0 is exactly zero, here and at a random point nearby"
        )
    if difference > allowed * size:
        raise NonDeterministicGradient(difference / size, allowed)
