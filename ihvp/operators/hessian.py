"""The Hessian of an objective."""

from __future__ import annotations

from ihvp import algebra
from ihvp.backend import Batch, Matvec, SupportsLinearize, SupportsProductError, Vector
from ihvp.errors import NonFinite, VectorError
from ihvp.objective import Objective
from ihvp.operators.base import LinearOperator


class Hessian(LinearOperator):
    r"""The Hessian of the mean loss, by products that never form it.

    .. math:: H = \nabla^2 C(\omega) = \frac{1}{N} \sum_{n=1}^{N} \nabla^2 C_n(\omega)

    Each product costs a few gradients over all the data (Pearlmutter, "Fast exact multiplication by the
    Hessian", Neural Computation 6, 1994). It belongs to the parameters as they are at the time of the
    product.

    Parameters
    ----------
    objective : Objective
        C.

    Examples
    --------
    The Hessian of a quadratic is its matrix:

    >>> import numpy as np
    >>> import ihvp
    >>> A = np.array([[2.0, 1.0], [1.0, 3.0]])
    >>> H = ihvp.Hessian(ihvp.Objective(params=np.zeros(2), grad=lambda w, batch: A @ w))
    >>> np.allclose(H.to_dense(), A)
    True
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective.space)
        self.objective = objective
        self._linearised: Matvec | None = None

    def apply(self, v: Vector) -> Vector:
        objective = self.objective
        objective.verify()
        try:
            return objective.mean(lambda batch: self._batch_product(batch, v), "A product with the Hessian")
        except NonFinite as error:
            if not algebra.all_finite(v):
                raise VectorError("v holds NaN or infinite entries; expected finite ones.") from error
            raise

    def _batch_product(self, batch: Batch, v: Vector) -> Vector:
        objective, backend = self.objective, self.objective.backend
        # Batches that come from an iterable may be others at the next pass, and all of them linearised at
        # once may not fit in memory: only data that is one batch in memory is linearised once.
        if batch is objective.batches.data and isinstance(backend, SupportsLinearize):
            if self._linearised is None:
                self._linearised = backend.linearize(objective.loss, objective.params, batch)
            return self._linearised(v)
        return backend.hvp(objective.loss, objective.params, batch, v)

    def product_error(self, v: Vector) -> float:
        objective, backend = self.objective, self.objective.backend
        if not isinstance(backend, SupportsProductError):
            return 0.0
        total = examples = 0.0
        for batch, count in objective.batches:
            error = backend.product_error(objective.loss, objective.params, batch, v)
            total += error * (count if objective.reduction == "mean" else 1)
            examples += count
        return total / examples
