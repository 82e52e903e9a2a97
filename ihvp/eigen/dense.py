"""Eigenpairs from the matrix itself."""

from __future__ import annotations

import numpy as np

from ihvp import algebra
from ihvp.eigen.approximation import Approximation, Products
from ihvp.eigen.basis import combinations
from ihvp.eigen.lanczos import Key


def dense_eigenpairs(product: Products, k: int, key: Key) -> Approximation:
    """The k pairs of the largest ``key``, by P products and a full decomposition of the symmetric part."""
    computed = product.dense()
    matrix = (computed + computed.mT) / 2
    eigenvalues, basis = product.space.xp.linalg.eigh(matrix)
    spectrum = np.asarray(algebra.to_numpy(eigenvalues), dtype=np.float64)
    leading = int(np.argmax(np.abs(spectrum)))
    wanted = np.argsort(-key(spectrum), kind="stable")[:k]
    values, vectors = spectrum[wanted], algebra.columns(basis, wanted)
    rest = algebra.axpy(matrix @ vectors, -algebra.coefficients(values, vectors), vectors)
    return Approximation(
        values=values,
        vectors=vectors,
        residuals=algebra.norms(rest),
        size=float(abs(spectrum[leading])),
        leading=algebra.column(basis, leading),
        image=lambda mixture: matrix @ combinations(vectors, mixture[:, None])[:, 0],
        complete=True,
    )
