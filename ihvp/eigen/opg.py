"""The leading eigenpairs of the OPG, from one pass over the examples where that suffices."""

from __future__ import annotations

import numpy as np

from ihvp import algebra
from ihvp.arguments import check_integer, check_number
from ihvp.backend import Vector
from ihvp.eigen.rayleigh_ritz import refine
from ihvp.eigen.streaming_svd import streaming_svd
from ihvp.eigenpairs import Eigenpairs
from ihvp.operators.opg import OPG
from ihvp.space import VectorSpace

# Small problems keep as many vectors as make this many numbers, up to a limit: often one pass is exact then.
# The time of a pass grows with the vectors kept, so that large ones are better refined by products.
_SMALL = 1 << 17
_MOST_OF_SMALL = 128


def opg_eigenpairs(
    operator: OPG, k: int, /, *, tol: float | None = None, rank: int | None = None, max_passes: int = 100
) -> Eigenpairs:
    r"""The k largest eigenpairs of ``G = 1/N JᵀJ``, by a streaming singular value decomposition of J.

    .. math:: N G = J^\top J = V \Sigma^2 V^\top

    One pass over the gradients gives them exactly if at most ``rank`` singular values differ from zero, and
    else up to what was truncated. Products with G improve them until their residuals, by fresh products, are
    small (Nilsen et al., "Efficient computation of Hessian matrices in TensorFlow", 2019, section 5.4; the
    implementation there centres the gradients and makes one pass).

    A pair has converged when its residual ``‖G x − λ x‖`` is at most ``tol`` times the largest eigenvalue, by
    default ε^(2/3). The singular values kept, ``rank``, are at least k; by default 2k + 10, or up to 128 as
    long as their vectors take no more than 2¹⁷ numbers. After ``max_passes`` block products with G, pairs
    that have not converged are marked so. The ``truncation_error`` is the trace of what the first pass left
    out of G: 0 to rounding where that pass alone is exact.

    Examples
    --------
    Two examples with the gradients (2, 0) and (0, 1):

    >>> import numpy as np
    >>> import ihvp
    >>> objective = ihvp.Objective(
    ...     params=np.zeros(2), data=np.array([[2.0, 0.0], [0.0, 1.0]]), grad=lambda w, x: x.mean(axis=0)
    ... )
    >>> opg_eigenpairs(OPG(objective), 1).values.round(6)
    array([2.])
    """
    objective, space = operator.objective, operator.space
    check_integer("k", k, 1, space.size, f"an integer from 1 to P = {space.size}")
    check_integer("rank", rank, k, expected=f"an integer of at least k = {k}", none=True)
    if rank is None:
        rank = max(2 * k + 10, min(_MOST_OF_SMALL, _SMALL // space.size))
    if tol is None:
        tol = space.product_eps ** (2 / 3)
    check_number("tol", tol, lambda number: 0 < number < 1, "a number between 0 and 1")
    svd = streaming_svd(objective.per_example_gradient_chunks(power=0.5), rank=min(rank, space.size))
    columns = 0

    def product(v: Vector) -> Vector:
        nonlocal columns
        columns += v.shape[1]
        return operator.apply(v)

    pairs = refine(product, _widened(svd.vectors, k, space), k, tol=tol, max_passes=max_passes)
    return Eigenpairs(
        values=pairs.values,
        vectors=pairs.vectors,
        residuals=pairs.residuals,
        converged=pairs.residuals <= tol * np.abs(pairs.values).max(),
        matvecs=columns,
        truncation_error=svd.discarded / svd.rows,
    )


def _widened(basis: Vector, k: int, space: VectorSpace) -> Vector:
    """At least k orthonormal columns: fewer examples than k leave eigenvalues that are zero."""
    missing = k - basis.shape[1]
    if missing <= 0:
        return basis
    xp = space.xp
    noise = space.asarray(np.random.default_rng(0).standard_normal((space.size, missing)))
    return xp.linalg.qr(algebra.concatenate([basis, noise]))[0]
