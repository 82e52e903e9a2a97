"""Curvature matrices that are means over the data."""

from __future__ import annotations

from abc import abstractmethod

from ihvp import algebra
from ihvp.backend import Batch, Vector
from ihvp.errors import NonFinite, VectorError
from ihvp.objective import Objective
from ihvp.operators.base import LinearOperator


class CurvatureOperator(LinearOperator):
    r"""A matrix :math:`\frac{1}{N} \sum_n M_n` over the examples of an objective.

    A subclass says what one batch contributes. Products belong to the parameters as they are at the time.

    Parameters
    ----------
    objective : Objective
        The loss, its parameters and its data.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective.space)
        self.objective = objective

    @abstractmethod
    def batch_product(self, batch: Batch, v: Vector) -> Vector:
        """The mean (or sum, by the objective's reduction) of ``M_n v`` over a batch, freshly allocated."""

    def apply(self, v: Vector) -> Vector:
        try:
            return self.objective.mean(lambda batch: self.batch_product(batch, v), self._what)
        except NonFinite as error:
            if not algebra.all_finite(v):
                raise VectorError("v holds NaN or infinite entries; expected finite ones.") from error
            raise

    @property
    def _what(self) -> str:
        return f"A product with the {type(self).__name__}"
