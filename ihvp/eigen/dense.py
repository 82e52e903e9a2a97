"""Eigenpairs from the matrix itself."""

from __future__ import annotations

import numpy as np

from ihvp import algebra
from ihvp.eigen.approximation import Approximation, Products
from ihvp.eigen.basis import combinations
from ihvp.eigen.wanted import Wanted


def dense_eigenpairs(product: Products, wanted: Wanted) -> Approximation:
    """The wanted pairs, by P products and a full decomposition of the symmetric part."""
    computed = product.dense()
    matrix = (computed + computed.mT) / 2
    eigenvalues, basis = product.space.xp.linalg.eigh(matrix)
    spectrum = np.asarray(algebra.to_numpy(eigenvalues), dtype=np.float64)
    leading = int(np.argmax(np.abs(spectrum)))
    places = wanted.order(spectrum)[: wanted.k]
    values, vectors = spectrum[places], algebra.columns(basis, places)
    rest = algebra.axpy(matrix @ vectors, -algebra.coefficients(values, vectors), vectors)
    return Approximation(
        values=values,
        vectors=vectors,
        residuals=algebra.norms(rest),
        assured=np.ones(wanted.k, dtype=bool),
        size=float(abs(spectrum[leading])),
        leading=algebra.column(basis, leading),
        image=lambda mixture: matrix @ combinations(vectors, mixture[:, None])[:, 0],
        complete=True,
    )
