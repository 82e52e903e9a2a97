"""Operators one after another, as in ``H @ M @ H``."""

from __future__ import annotations

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.errors import InvalidOption
from ihvp.operators.base import LinearOperator, require_same_space


class Product(LinearOperator):
    """``A B ⋯``, of operators on the same vectors; what ``A @ B`` returns.

    It is symmetric where it reads the same from both ends, as ``H M H`` does. Other ones multiply vectors all
    the same, and solvers and eigensolvers refuse them.

    Parameters
    ----------
    *factors : LinearOperator
        The last is applied first.

    Raises
    ------
    VectorError
        The operators' vectors differ in length, dtype, device or framework.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> H, M = ihvp.Dense(np.diag([1.0, 3.0])), ihvp.Dense(np.ones((2, 2)))
    >>> (H @ M @ H) @ np.array([1.0, 0.0])
    array([1., 3.])
    """

    def __init__(self, *factors: LinearOperator) -> None:
        for factor in factors:
            require_same_space(factors[0], factor, "multiply")
        super().__init__(factors[0].space)
        self.factors: tuple[LinearOperator, ...] = tuple(
            part
            for factor in factors
            for part in (factor.factors if isinstance(factor, Product) else (factor,))
        )

    def apply(self, v: Vector) -> Vector:
        for factor in reversed(self.factors):
            v = factor.apply(v)
        return v

    def verify(self) -> None:
        if any(one is not other for one, other in zip(self.factors, reversed(self.factors), strict=True)):
            raise InvalidOption(
                "operator",
                self,
                "a symmetric matrix, which a product of operators is where it reads the same from both ends, "
                "such as H @ M @ H",
            )
        for factor in self.factors:
            factor.verify()

    def product_error(self, v: Vector) -> float:
        error = 0.0
        for factor in reversed(self.factors):
            product = factor.apply(v)
            # What the factors before have lost grows as their product does.
            growth = float(algebra.norms(product)) / (float(algebra.norms(v)) or 1.0)
            error, v = growth * error + factor.product_error(v), product
        return error

    def __repr__(self) -> str:
        return " @ ".join(map(repr, self.factors))
