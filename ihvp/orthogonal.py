"""Orthonormal bases of tall and skinny blocks, from their small Gram matrices."""

from __future__ import annotations

from dataclasses import dataclass

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector

# What rounding leaves of a zero, in machine epsilons.
_ZERO = 10

# Each pass widens the range of singular values that is resolved by a factor of about eps^-½: two do for most
# blocks, and four for every block that floating-point numbers can hold.
_PASSES = 8


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis of what a block spans: ``block = vectors @ coefficients`` to rounding."""

    vectors: Vector  # (P, m), where m is the numerical rank
    # (m, k), of the block's columns in the basis; combinations that vanish are the dependent ones
    coefficients: NDArray[np.float64]
    # (m, m), vectorsᵀ vectors, the identity to what was asked for; exactly the identity where a bound on the
    # rounding is below the root of the machine epsilon
    gram: NDArray[np.float64]


def orthonormal(
    block: Vector,
    *,
    scale: float | None = None,
    deviation: float | None = None,
    gram: NDArray[np.float64] | None = None,
) -> Basis:
    r"""An orthonormal basis of the span of a block's columns, without those that depend on others.

    Each pass multiplies the block Y by :math:`D^{-1} U \Lambda^{-1/2}`, where :math:`D^{-1} Y^T Y D^{-1} = U
    \Lambda U^T` and D has the columns' norms, with eigenvalues below rounding raised to its level. For an
    independent block that is Cholesky-QR done twice (Yamamoto, Nakatsukasa, Yanagisawa and Fukaya, ETNA 44,
    2015), for a nearly dependent one its shifted form (Fukaya, Kannan, Nakatsukasa, Yamamoto and Yanagisawa,
    SIAM Journal on Scientific Computing 42, 2020), with the eigenvectors of the Gram matrix in place of its
    triangular factor so that the rank shows (Stathopoulos and Wu, SIAM Journal on Scientific Computing 23,
    2002). It costs two matrix products a pass, against Householder's column by column.

    The block is ``(P, k)``, of columns of any scale, and overwritten where its type allows. ``scale`` is the
    size of the numbers that it was computed from: what is below their rounding is not a direction; by default
    each column counts by its own norm. ``deviation`` is the largest entry of ``vectorsᵀ vectors − I`` to
    allow, by default that of rounding. ``gram`` is ``blockᵀ block``, where it is known and ``scale`` is
    given.

    >>> import numpy as np
    >>> basis = orthonormal(np.array([[3.0, 6.0], [4.0, 8.0], [0.0, 0.0]]))
    >>> basis.vectors.shape, np.round(basis.vectors @ basis.coefficients, 12)
    ((3, 1), array([[3., 6.],
           [4., 8.],
           [0., 0.]]))
    """
    eps = float(array_api_compat.array_namespace(block).finfo(block.dtype).eps)
    columns = block.shape[1]
    zero = _ZERO * eps * columns**0.5
    deviation = zero if deviation is None else deviation
    units = np.ones(columns)
    if scale is None:
        norms = algebra.norms(block)
        units = np.where(norms > 0, norms, 1.0)
        block = algebra.scale(block, algebra.coefficients(1 / units, block))
    coefficients, gram = np.eye(columns), algebra.gram(block, block) if gram is None else gram
    largest = max(scale or 1.0, float(np.sqrt(np.max(np.diag(gram)))))
    for _ in range(_PASSES):
        norms = np.sqrt(np.diag(gram))
        carried = norms * np.max(np.abs(coefficients), axis=1)
        present = carried > zero * largest
        if np.all(present) and np.all(np.abs(gram - np.eye(norms.size)) <= deviation):
            break
        norms, coefficients = norms[present], coefficients[present]
        values, vectors = np.linalg.eigh(gram[np.ix_(present, present)] / np.outer(norms, norms))
        roots = np.sqrt(np.maximum(values, _ZERO * eps * norms.size))
        transform = np.zeros((present.size, norms.size))
        transform[present] = vectors / norms[:, None] / roots
        coefficients = (roots[:, None] * vectors.T * norms) @ coefficients
        block = algebra.multiply(block, transform)
        if values.size and zero <= min(deviation, eps**0.5) * values[0]:
            # Rounding cannot have left more, so that there is nothing to measure.
            gram = np.eye(norms.size)
            break
        gram = algebra.gram(block, block)
    return Basis(block, coefficients * units, gram)
