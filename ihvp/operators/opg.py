"""The outer product of gradients, or empirical Fisher matrix."""

from __future__ import annotations

from collections.abc import Callable

from ihvp import algebra
from ihvp.backend import Batch, Vector
from ihvp.data import count_examples
from ihvp.operators.curvature import CurvatureOperator


class OPG(CurvatureOperator):
    r"""The outer product of gradients (empirical Fisher matrix), not centred.

    .. math:: G = \frac{1}{W} \sum_{n=1}^{N} w_n \nabla C_n \, \nabla C_n^\top = \frac{1}{N} J^\top J

    with J of shape ``(N, P)``, whose rows are :math:`(N w_n / W)^{1/2} \nabla C_n`: the gradients of the
    single examples where each weighs 1. It is positive semi-definite, of rank N at most (Nilsen, Munthe-Kaas,
    Skaug and Brun, "Efficient computation of Hessian matrices in TensorFlow", 2019, eq. 11–13).

    A product makes the gradients anew, a bounded number of rows at a time: J is never held whole. A backend
    without ``SupportsPerExampleGrads`` makes one gradient an example.

    Parameters
    ----------
    objective : Objective
        C. A ``C_n`` is the loss of a batch that holds example n alone.

    Examples
    --------
    Two examples with the gradients (1, 0) and (1, 2):

    >>> import numpy as np
    >>> import ihvp
    >>> objective = ihvp.Objective(
    ...     params=np.zeros(2), data=np.array([[1.0, 0.0], [1.0, 2.0]]), grad=lambda w, x: x.mean(axis=0)
    ... )
    >>> ihvp.OPG(objective).to_dense()
    array([[1., 1.],
           [1., 2.]])
    """

    _power = 0.5  # of the weights, as Objective.batch_gradient_chunks takes it

    def batch_product(self, batch: Batch, v: Vector) -> Vector:
        return self._batch_sum(batch, lambda J, weight: J.T @ (weight * (J @ v)))

    def apply(self, v: Vector) -> Vector:
        self._meet()
        return super().apply(v)

    def to_dense(self) -> Vector:
        self._meet()
        return self._dense_mean(lambda batch: self._batch_sum(batch, lambda J, weight: J.T @ (weight * J)))

    def _meet(self) -> None:
        """Ask for what all processes add up, also in those whose batches weigh nothing and would not ask."""
        _ = self.objective.mean_weight

    def _batch_sum(self, batch: Batch, term: Callable[[Vector, float], Vector]) -> Vector:
        objective, unit = self.objective, self.objective.mean_weight
        weight = unit
        if objective.reduction == "mean":
            weight = unit / objective.weighting.total(batch, count_examples(batch))
        total: Vector = None
        for J in objective.batch_gradient_chunks(batch, power=self._power):
            part = term(J, weight)
            total = part if total is None else algebra.axpy(total, 1.0, part)
        return total
