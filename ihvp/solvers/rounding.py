"""How far rounding may have taken a recomputed residual from the true one."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.solvers.base import CountedOperator
from ihvp.space import VectorSpace

# Products lost 0.9 ε ‖A‖ ‖x‖ to rounding at most, over dense matrices of all kinds and sizes from 2 to 300.
# The rest is for longer sums, P^(1/4) of it, and for a norm that is known from below.
_A_PRIORI = 2.0
# How many standard errors the mean of several evaluations of a residual may be off: for sizes below the first
# number, below the second, and above, where the many entries average chance out. Over the same matrices the
# true norm exceeded so many in none of 40,000 cases.
_FEW, _MANY = 10, 1000
_STANDARD_ERRORS = 10.0, 5.0, 4.0
# x is multiplied by these. None is a power of two, so that all roundings differ.
_SCALES = (4 / 3, 1.1, 1.9)
# A residual that is so much smaller than its target leaves no room for rounding to have hidden more.
_PROOF = 100.0
# The recurrence aims below the target by this multiple of ε ‖v‖: room for the rounding of the certificate.
_ROOM = 8.0


class Certificate(NamedTuple):
    """Norms of true residuals, bounded from above."""

    norms: NDArray[np.float64]  # (k,), of the computed residuals
    rounding: NDArray[np.float64]  # (k,), what the true residual may differ from the computed one
    # (k,), whether the latter was measured; elsewhere it is an a priori bound, and may be far too large
    measured: NDArray[np.bool_]

    @property
    def bounds(self) -> NDArray[np.float64]:
        """The norms that the true residuals do not exceed."""
        return self.norms + self.rounding


def certify(
    operator: CountedOperator,
    v: Vector,
    x: Vector,
    r: Vector,
    *,
    sizes: NDArray[np.float64],
    targets: NDArray[np.float64],
    claimed: NDArray[np.bool_] | None = None,
    largest: float | None,
    shift: float,
) -> Certificate:
    """What is known of ``‖v − A x‖`` from the computed ``r``.

    A product loses about ``ε ‖A‖ ‖x‖`` to rounding: far more than ``ε ‖v‖`` where x is large along small
    eigenvalues. An a priori bound decides where that is negligible. Where it would decide over the target,
    the loss is measured: the product with a multiple of x, divided by the multiple, has other roundings. The
    mean takes the place of the residual. That is one more product for a column, three for fewer than a
    thousand unknowns.

    A has the damping in it, which may cancel, as the ``shift``. Its norm is the ``largest`` that products
    have shown, None where they have not. ``sizes`` are ``‖v‖``, and ``targets`` the norms to stay within. Of
    the columns that a method ``claimed`` to have solved, what holds them up is worth knowing.
    """
    norms, lengths = (np.nan_to_num(np.atleast_1d(algebra.norms(y)), nan=np.inf) for y in (r, x))
    space = operator.operator.space
    size, eps = space.size, space.product_eps
    # Of the subtraction, and of the norms themselves.
    own = norms * (space.eps + sum_error(space))
    images = np.maximum(sizes + norms, ((largest or 0.0) + 2 * shift) * lengths)
    rounding = np.where(lengths > 0, _A_PRIORI * eps * size**0.25 * images + own, 0.0)
    candidates = norms <= targets
    known = largest is not None
    doubtful = candidates & (norms + rounding > targets)
    if not known:
        # What a product loses to rounding is part of the residual that it gives, and no larger.
        doubtful = candidates & (norms > targets / _PROOF)
        rounding += np.where(candidates & (lengths > 0), norms, 0.0)
    if claimed is not None:
        doubtful |= claimed & np.isfinite(norms) & (norms + rounding > targets) & (rounding > 0.1 * norms)
    doubtful &= lengths > 0
    if np.any(doubtful):
        norms[doubtful], error = _mean(operator, *(algebra.keep(block, doubtful) for block in (v, x, r)))
        multiple = _STANDARD_ERRORS[(size >= _FEW) + (size >= _MANY)]
        lost = multiple * error + space.eps / 2 * sizes[doubtful] + own[doubtful]
        rounding[doubtful] = np.minimum(rounding[doubtful], lost) if known else lost
    for place in () if operator.operator.is_exact else np.flatnonzero(candidates):
        rounding[place] += operator.operator.product_error(algebra.column(x, int(place)))
    return Certificate(norms, rounding, doubtful)


def goals(
    targets: NDArray[np.float64], sizes: NDArray[np.float64], space: VectorSpace
) -> NDArray[np.float64]:
    """What a recurrence should reach, so that the certificate reaches the target for all its rounding."""
    lost = _ROOM * space.product_eps * sizes
    return np.maximum(targets * (1 - 2 * sum_error(space)) - lost, targets / 2)


def sum_error(space: VectorSpace) -> float:
    """The relative error of a norm: sums are long, and of one sign."""
    return space.eps * math.sqrt(space.size)


def _mean(
    operator: CountedOperator, v: Vector, x: Vector, r: Vector
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The norms of the columns of a mean of several evaluations of ``r``, and their standard errors."""
    scales = _SCALES if v.shape[0] < _MANY else _SCALES[:1]
    total, squares, count = None, np.zeros(1 if v.ndim == 1 else v.shape[1]), len(scales) + 1
    for scale in scales:
        product = algebra.scale(operator.apply(x * scale), 1 / scale)
        difference = algebra.axpy(algebra.subtract_from(v, product), -1.0, r)
        del product
        squares += np.atleast_1d(algebra.norms(difference)) ** 2
        total = difference if total is None else algebra.axpy(total, 1.0, difference)
        del difference
    squares -= np.atleast_1d(algebra.norms(total)) ** 2 / count
    norms = np.atleast_1d(algebra.norms(algebra.xpay(total, 1 / count, r)))
    return norms, np.sqrt(np.maximum(squares, 0.0) / (count * (count - 1)))
