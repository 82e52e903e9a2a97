"""A few Lanczos steps: how low and how high the curvature reaches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh_tridiagonal

from ihvp import algebra
from ihvp.backend import Vector


@dataclass(frozen=True)
class RitzRange:
    """The extreme Ritz values with bounds on their errors."""

    # lowest, highest: estimates of the smallest and largest eigenvalue; the true ones lie at or beyond them
    lowest: float
    # lowest_error, highest_error: an eigenvalue lies within this distance of the estimate
    lowest_error: float
    highest: float
    highest_error: float

    @property
    def largest(self) -> float:
        """The larger magnitude of the two."""
        return max(abs(self.lowest), abs(self.highest))


def ritz_range(matvec: Callable[[Vector], Vector], start: Vector, steps: int = 20) -> RitzRange:
    """The extreme Ritz values of a symmetric operator after a few Lanczos steps from ``start``.

    Without reorthogonalisation, so that only three vectors are held: the copies that this produces repeat
    extreme values and do not move them (Paige, "Accuracy and effectiveness of the Lanczos algorithm for the
    symmetric eigenproblem", Linear Algebra and its Applications 34, 1980). The error bound is the residual
    ``|β_m s_m|`` of the Ritz pair (Parlett, "The Symmetric Eigenvalue Problem", section 13.2).

    ``start`` is any vector but zero, and ``steps`` the most products to spend.
    """
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    current = start / float(algebra.norms(start))
    previous, beta = None, 0.0
    for _ in range(min(steps, start.shape[0])):
        following = matvec(current)
        if previous is not None:
            following = algebra.axpy(following, -beta, previous)
        alpha = float(algebra.dots(current, following))
        following = algebra.axpy(following, -alpha, current)
        beta = float(algebra.norms(following))
        diagonal.append(alpha)
        off_diagonal.append(beta)
        size = max(map(abs, (*diagonal, *off_diagonal)))
        if beta <= np.finfo(np.float64).eps * size:
            break
        previous, current = current, following / beta
    # LAPACK does not scale a tridiagonal matrix and may fail with numbers near the smallest: scaled exactly.
    exponent = math.frexp(size)[1]
    values, vectors = eigh_tridiagonal(
        np.ldexp(diagonal, -exponent), np.ldexp(np.array(off_diagonal[:-1]), -exponent)
    )
    errors = np.abs(off_diagonal[-1] * vectors[-1])
    low, high = np.ldexp(values[[0, -1]], exponent)
    return RitzRange(float(low), float(errors[0]), float(high), float(errors[-1]))
