"""Approximate eigenpairs, and the certificate that fresh products give them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.eigen.basis import combinations
from ihvp.eigenpairs import Eigenpairs
from ihvp.errors import NonFinite
from ihvp.operators.base import LinearOperator

# The products' own error is estimated to within this factor.
_NOISE = 3.0
_OTHER = 0.7


class Products:
    """``v ↦ A v``, counted and checked."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator, self.space, self.count = operator, operator.space, 0
        self._noise: float | None = None

    def __call__(self, v: Vector) -> Vector:
        image = self.unchecked(v)
        if not np.all(np.isfinite(algebra.norms(image))):
            raise NonFinite("A product with the operator")
        return image

    def unchecked(self, v: Vector) -> Vector:
        """A product whose caller finds what is not finite."""
        self.count += 1 if v.ndim == 1 else v.shape[1]
        return self.operator.measured(v)[0]

    def followed_by(
        self, function: Callable[..., Any], v: Vector, *arguments: Any, fixed: Hashable = None
    ) -> Any:
        """:meth:`LinearOperator.followed_by`, counted."""
        self.count += 1
        return self.operator.followed_by(function, v, *arguments, fixed=fixed)

    def dense(self) -> Vector:
        """The matrix, by P products."""
        self.count += self.space.size
        matrix = self.operator.to_dense()
        if not algebra.all_finite(matrix):
            raise NonFinite("A product with the operator")
        return matrix

    def noise(self, leading: Vector) -> float:
        """What the error of a product may be: estimated once, for the leading eigenvector.

        Half precision is not rounded alike on every processor, and there it is measured.
        """
        if self._noise is None:
            error = self.operator.product_error(leading)
            if self.space.product_eps > self.space.eps:
                # Other multiples of a vector have other rounding errors.
                other = self(_OTHER * leading) / _OTHER
                error += float(algebra.norms(algebra.subtract_from(self(leading), other)))
            self._noise = _NOISE * error
        return self._noise


@dataclass(frozen=True, eq=False)
class Approximation:
    """What a method says that it has found."""

    values: NDArray[np.float64]  # (k,), in any order
    vectors: Vector  # (P, k), orthonormal
    residuals: NDArray[np.float64]  # (k,), ‖A x − θ x‖ as the method knows it
    assured: NDArray[np.bool_]  # (k,), whether no other eigenvalue belongs in the place of this one
    size: float  # the largest magnitude of an eigenvalue
    leading: Vector  # (P,), the eigenvector that belongs to it
    # c ↦ A X c for (k,) as the method knows it, of which the residuals are a consequence
    image: Callable[[NDArray[np.float64]], Vector]
    complete: bool  # whether the method was not stopped by its limit


def certified(product: Products, found: Approximation, tol: float, *, seed: int, noisy: bool) -> Eigenpairs:
    """The pairs with residuals that fresh products stand for, in descending order.

    A method with full reorthogonalisation knows the residuals to rounding. Whether that holds is tested by
    one product, with a random combination of all vectors: how far it is from what the method says, each
    residual may be wrong in the mean, and that is added to it. Where the sums are not within the tolerance,
    every pair has its residual computed anew, by a product of its own.

    ``tol`` relates residuals to ``found.size``. Where ``noisy``, those as small as the products' own error
    for the leading vector are small enough.
    """
    limit = tol * found.size
    if noisy:
        limit = max(limit, product.noise(found.leading))
    vectors, values, residuals = found.vectors, found.values, found.residuals
    if found.complete:
        mixture = np.random.default_rng(seed).standard_normal(values.size)
        mixture /= np.linalg.norm(mixture)
        fresh = product(combinations(found.vectors, mixture[:, None])[:, 0])
        residuals = residuals + float(algebra.norms(algebra.subtract_from(found.image(mixture), fresh)))
    if not found.complete or np.any(residuals > limit):
        images = product(vectors)
        values = algebra.dots(vectors, images) / algebra.norms(vectors) ** 2
        residuals = algebra.norms(algebra.axpy(images, -algebra.coefficients(values, vectors), vectors))
    order = np.argsort(-values, kind="stable")
    if np.any(order != np.arange(order.size)):
        vectors = algebra.columns(vectors, order)
    converged = found.assured & (residuals <= limit)
    return Eigenpairs(values[order], vectors, residuals[order], converged[order], product.count)
