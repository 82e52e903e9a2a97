"""The Hessian of an objective."""

from __future__ import annotations

from ihvp.backend import Batch, Matvec, SupportsLinearize, SupportsProductError, Vector
from ihvp.objective import Objective
from ihvp.operators.curvature import CurvatureOperator


class Hessian(CurvatureOperator):
    r"""The Hessian of the mean loss, by products that never form it.

    .. math:: H = \nabla^2 C(\omega) = \frac{1}{N} \sum_{n=1}^{N} \nabla^2 C_n(\omega)

    Each product costs a few gradients over all the data (Pearlmutter, "Fast exact multiplication by the
    Hessian", Neural Computation 6, 1994).

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
        super().__init__(objective)
        self._linearised: Matvec | None = None

    def batch_product(self, batch: Batch, v: Vector) -> Vector:
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
