"""A curvature matrix in units in which its diagonal is one."""

from __future__ import annotations

from ihvp.backend import Vector
from ihvp.operators import LinearOperator


class UnitDiagonal(LinearOperator):
    """``S A S`` with S diagonal and ones, or minus ones, on the diagonal of the product; A is formed once.

    Regressors have unlike units. Those of the parameters do not count here, for the precision of a solve as
    little as for what is singular.
    """

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(operator.space)
        self.operator, self._matrix, xp = operator, operator.to_dense(), operator.space.xp
        sizes = xp.abs(xp.linalg.diagonal(self._matrix)) ** 0.5
        self._units = 1 / xp.where(sizes > 0, sizes, xp.ones_like(sizes))

    def scaled(self, v: Vector) -> Vector:
        """``S v``."""
        return self._units * v if v.ndim == 1 else self._units[:, None] * v

    def apply(self, v: Vector) -> Vector:
        return self.scaled(self.operator.apply(self.scaled(v)))

    def to_dense(self) -> Vector:
        return self._units[:, None] * self._matrix * self._units

    def verify(self) -> None:
        self.operator.verify()
