"""The Hessian of an objective."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import numpy as np

from ihvp import algebra
from ihvp.arguments import naming
from ihvp.backend import (
    Batch,
    Fusible,
    SupportsBatchProducts,
    SupportsLinearize,
    SupportsProductError,
    SupportsUniformBatches,
    Vector,
)
from ihvp.errors import LossFailed
from ihvp.operators.base import Measure, combined
from ihvp.operators.kept import KeptCurvature
from ihvp.operators.passes import Ways


class Hessian(KeptCurvature):
    r"""The Hessian of the mean loss, by products that never form it.

    .. math:: H = \nabla^2 C(\omega) = \frac{1}{W} \sum_{n=1}^{N} w_n \nabla^2 C_n(\omega)

    Each product costs a few gradients over all the data (Pearlmutter, "Fast exact multiplication by the
    Hessian", Neural Computation 6, 1994).

    Parameters
    ----------
    objective : Objective
        C.
    memory_budget : int, optional
        The bytes that batches may take which stay linearised for the next products: by default half of what
        is free on the device at the first product; 0 keeps nothing. It matters for data that is the same at
        every pass (one batch in memory, cut or not, or a list of batches) on backends that can linearise.

    Raises
    ------
    InvalidOption
        The budget is no number of bytes.
    WrongSecondDerivative
        At the first product, unless the objective has ``checks=False``.

    Notes
    -----
    Linearised batches follow parameters that change in place, or that are replaced on the objective. The
    arrays of the data must not change while an operator is in use.

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

    _traceable = True

    @property
    def _ways(self) -> Ways:
        backend, loss, params = self.objective.backend, self.objective.loss, self.objective.params
        return Ways(
            partial(backend.hvp, loss, params),
            partial(backend.linearize, loss, params) if isinstance(backend, SupportsLinearize) else None,
            partial(backend.hvp_sum, loss, params) if isinstance(backend, SupportsUniformBatches) else None,
        )

    def _batch_products(self) -> Callable[[Batch, Vector], Vector]:
        objective, backend = self.objective, self.objective.backend
        if isinstance(backend, SupportsBatchProducts):
            return backend.batch_products(objective.loss, objective.params)
        return self.batch_product

    def verify(self) -> None:
        self.objective.verify_second_derivative()

    def apply(self, v: Vector) -> Vector:
        product = self._compiled(v, None, 0.0)
        return super().apply(v) if product is None else product[0]

    _plain_apply = apply

    def measured(self, v: Vector, measure: Measure | None = None, shift: float = 0.0) -> tuple[Vector, Any]:
        return self._compiled(v, measure, shift) or super().measured(v, measure, shift)

    def _compiled(self, v: Vector, measure: Measure | None, shift: float) -> tuple[Vector, Any] | None:
        """:meth:`measured` in one program; None where there is none, or something in it is not finite."""
        self.verify()
        # Whatever asks for a product, there is one program to compile for vectors and one for blocks.
        measure = measure or (algebra.dot_parts if v.ndim == 1 else algebra.gram_parts)
        with naming(LossFailed, self._what):
            whole = self._whole()
            if whole is None:
                return None
            product, parts = whole.then(algebra.shifted, v, self._factor, shift, fixed=measure)
        parts = algebra.to_numpy(parts)
        return (product, parts) if np.all(np.isfinite(parts)) else None

    def followed_by(
        self, function: Callable[..., Any], v: Vector, *arguments: Any, fixed: Hashable = None
    ) -> Any:
        self.verify()
        with naming(LossFailed, self._what):
            whole = self._whole()
            if whole is not None and self._factor == 1.0:
                return whole.then(function, v, *arguments, fixed=fixed)
            if whole is not None:
                return whole.then(combined, v, self._factor, 0.0, *arguments, fixed=(function, fixed))
        return super().followed_by(function, v, *arguments, fixed=fixed)

    @property
    def _factor(self) -> float:
        """What the product over all the data is multiplied with, where the examples weigh the same."""
        return 1.0 if self.objective.reduction == "mean" else 1.0 / self.objective.overall_weight

    def _whole(self) -> Fusible | None:
        """All the data linearised at once, where nothing but the product is to be done and it is compiled."""
        objective = self.objective
        plain = self.space.product_eps == self.space.eps and objective.processes.count == 1
        lasting = objective.batches.lasting and isinstance(objective.backend, SupportsLinearize)
        if not (plain and lasting) or objective.weighting.function is not None:
            return None
        return self._current_passes().whole()

    @property
    def is_exact(self) -> bool:
        return not isinstance(self.objective.backend, SupportsProductError)

    def product_error(self, v: Vector) -> float:
        objective, backend = self.objective, self.objective.backend
        if not isinstance(backend, SupportsProductError):
            return 0.0
        total = 0.0
        for batch, count in objective.batches:
            weight = objective.weighting.total(batch, count)
            if weight:
                error = backend.product_error(objective.loss, objective.params, batch, v)
                total += error * (weight if objective.reduction == "mean" else 1)
        return float(objective.processes.each(total).sum()) / objective.overall_weight
