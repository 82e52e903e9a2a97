"""Leading eigenpairs from a subspace that nearly holds them, improved until their residuals are small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector


@dataclass(frozen=True)
class RitzPairs:
    """Approximate eigenpairs with residuals by fresh products."""

    values: NDArray[np.float64]  # (k,), Ritz values, descending; none is above the eigenvalue of its place
    vectors: Vector  # (P, k), orthonormal
    residuals: NDArray[np.float64]  # (k,), ‖A x − θ x‖: an eigenvalue lies within this distance of θ
    passes: int  # block products that were made


def refine(
    matvec: Callable[[Vector], Vector], basis: Vector, k: int, *, tol: float, max_passes: int
) -> RitzPairs:
    """The k leading eigenpairs of a symmetric operator, from an orthonormal basis that is close to them.

    The basis is widened by the residuals of the pairs that are not good enough, orthogonalised twice, and the
    operator is projected on it (Rayleigh–Ritz); at twice its width it is cut back to the best Ritz vectors.
    This is Davidson's method in blocks and without preconditioner, whose bases span Krylov spaces (Saad,
    "Numerical Methods for Large Eigenvalue Problems", 2011, section 8.4).

    ``basis`` has r ≥ k orthonormal columns, the best first. Residuals of at most ``tol`` times the largest
    value in magnitude are good enough. A result that needed more than ``max_passes`` block products has
    residuals that say so.
    """
    width, limit = basis.shape[1], min(2 * basis.shape[1], basis.shape[0])
    pairs = _certified(matvec, basis[:, :k], passes=1)
    if max_passes < 3 or not _unfinished(pairs.values, pairs.residuals, tol).size:
        return pairs
    images, passes = matvec(basis), 2
    while True:
        rotation = _ritz_rotation(basis, images)
        vectors, values, residuals = _ritz_pairs(basis, images, rotation[:, :k])
        numbers = _unfinished(values, algebra.norms(residuals), tol)
        fresh = _directions(basis, algebra.columns(residuals, numbers)) if numbers.size else None
        if fresh is None or passes + 2 > max_passes:
            return _certified(matvec, vectors, passes + 1)
        if basis.shape[1] + fresh.shape[1] > limit:
            kept = algebra.as_like(rotation[:, :width].copy(), basis)
            basis, images = basis @ kept, images @ kept
        basis = algebra.concatenate([basis, fresh])
        images = algebra.concatenate([images, matvec(fresh)])
        passes += 1


def _certified(matvec: Callable[[Vector], Vector], vectors: Vector, passes: int) -> RitzPairs:
    images = matvec(vectors)
    vectors, values, residuals = _ritz_pairs(vectors, images, _ritz_rotation(vectors, images))
    order = np.argsort(-values, kind="stable")  # equal ones may differ in their last bits
    return RitzPairs(values[order], algebra.columns(vectors, order), algebra.norms(residuals)[order], passes)


def _ritz_rotation(basis: Vector, images: Vector) -> NDArray[np.float64]:
    """The eigenvectors of the projected operator, the largest eigenvalue first."""
    projected = np.asarray(algebra.to_numpy(basis.T @ images), dtype=np.float64)
    _, rotation = np.linalg.eigh((projected + projected.T) / 2)
    return rotation[:, ::-1]


def _ritz_pairs(
    basis: Vector, images: Vector, rotation: NDArray[np.float64]
) -> tuple[Vector, NDArray[np.float64], Vector]:
    """Vectors, values and residuals."""
    vectors, products = (block @ algebra.as_like(rotation.copy(), block) for block in (basis, images))
    values = algebra.dots(vectors, products)
    return vectors, values, products - vectors * algebra.coefficients(values, vectors)


def _unfinished(values: NDArray[np.float64], norms: NDArray[np.float64], tol: float) -> NDArray[np.intp]:
    return np.flatnonzero(norms > tol * np.abs(values).max())


def _directions(basis: Vector, residuals: Vector) -> Vector | None:
    """An orthonormal basis of what the residuals add to ``basis``; None if that is nothing."""
    xp = array_api_compat.array_namespace(basis)
    eps = float(xp.finfo(basis.dtype).eps)
    sizes = algebra.norms(residuals)
    added = residuals / algebra.coefficients(np.where(sizes > 0, sizes, 1.0), residuals)
    added = added - basis @ (basis.T @ added)
    orthonormal, triangle = xp.linalg.qr(added)
    left, singular, _ = xp.linalg.svd(triangle, full_matrices=False)
    # Columns that hardly differ leave a direction made of rounding errors.
    count = int(np.count_nonzero(algebra.to_numpy(singular) > eps**0.5))
    count = min(count, basis.shape[0] - basis.shape[1])
    if count == 0:
        return None
    added = orthonormal @ left[:, :count]
    added = added - basis @ (basis.T @ added)
    return xp.linalg.qr(added)[0]
