"""Whether a loss has a gradient: finite, the same twice, and not identically zero."""

from __future__ import annotations

import numpy as np

from ihvp import algebra
from ihvp.backend import Batch, Vector
from ihvp.errors import LossIndependentOfParameters, NonDeterministicGradient, NonFinite
from ihvp.verification.subject import Subject


def verified_gradient(subject: Subject, batch: Batch) -> Vector:
    """The gradient of a batch, checked by a second one: finite, the same twice, not identically zero."""
    one, two = subject.gradient(batch), subject.gradient(batch)
    if not algebra.all_finite(one):
        raise NonFinite("The gradient", 0)
    size = float(algebra.norms(one))
    difference = np.inf
    if algebra.all_finite(two):
        difference = float(algebra.norms(algebra.axpy(two, -1.0, one)))
    del two
    # Parallel sums may differ in their last bits from call to call; dropout differs by far more.
    allowed = subject.space.product_eps**0.5
    if difference <= allowed * size and size > 0:
        return one
    # At an optimum the gradient is as small as its own rounding, or zero: its size elsewhere tells.
    size = float(algebra.norms(subject.nearby(1.0).gradient(batch)))
    if size == 0.0:  # as where every margin is kept
        sizes = (float(algebra.norms(point.gradient(batch))) for point in subject.far())
        size = next((size for size in sizes if size), 0.0)
    if size == 0.0:
        raise LossIndependentOfParameters(
            "its gradient on batch 0 is exactly zero, here and at random points"
        )
    if difference > allowed * size:
        raise NonDeterministicGradient(difference / size, allowed)
    return one
