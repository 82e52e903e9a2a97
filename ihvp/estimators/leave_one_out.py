"""A low-rank approximation from random products, and all those from one probe fewer."""

from __future__ import annotations

from dataclasses import dataclass

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp.backend import Vector
from ihvp.estimators.probes import host, native, products
from ihvp.operators.base import LinearOperator


@dataclass(frozen=True)
class RangeBasis:
    """Q with ``A Ω = Q R``, its product ``Z = A Q``, and the directions that each probe alone contributes.

    The basis of the range without probe i is Q without ``s_i``: ``Q_i Q_iᵀ = Q (I − s_i s_iᵀ) Qᵀ``, where
    ``s_i`` is the normalised column i of ``R⁻ᵀ`` (Epperly, Tropp and Webber, section 2.1).
    """

    # basis, product (P, n), Q and Z
    basis: Vector
    product: Vector
    triangle: NDArray[np.float64]  # (n, n), R
    # (n, n), the columns s_i; None where the range of A is exhausted, so that Q has all of it
    directions: NDArray[np.float64] | None


def range_basis(operator: LinearOperator, probes: Vector) -> RangeBasis:
    """The range that the products of a symmetric operator with n probes show, for 2n products."""
    product = products(operator, probes)
    xp = array_api_compat.array_namespace(product)
    basis, triangle = xp.linalg.qr(product)
    r = host(triangle)
    eps = float(xp.finfo(product.dtype).eps)
    left, values, _ = np.linalg.svd(r)
    held = values > 10 * r.shape[0] * eps * values[0]
    if not np.all(held):
        # Nothing beyond rounding lies outside the span of fewer vectors than there are probes.
        basis, directions = basis @ native(left[:, held], basis), None
    else:
        inverse = np.linalg.inv(r).T
        directions = inverse / np.linalg.norm(inverse, axis=0)
    image = products(operator, basis) if basis.shape[1] else basis
    return RangeBasis(basis, image, r, directions)
