"""The generalised Gauss–Newton matrix of an objective."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ihvp.backend import (
    Batch,
    SupportsBatchProducts,
    SupportsGaussNewton,
    SupportsLinearizeGaussNewton,
    Vector,
)
from ihvp.errors import MissingCapability
from ihvp.objective import Objective
from ihvp.operators.kept import KeptCurvature
from ihvp.operators.passes import Ways


class GaussNewton(KeptCurvature):
    r"""The generalised Gauss–Newton matrix of a model's loss.

    .. math:: \frac{1}{N} \sum_{n=1}^{N} J_n^\top \, \nabla^2_{f} \ell_n \, J_n

    with :math:`J_n` the Jacobian of the model's outputs f for example n by the parameters, and
    :math:`\ell_n` its loss as a function of these outputs. It is positive semi-definite where the loss is
    convex in the outputs, as cross-entropy and squared error are; the Hessian is not (Schraudolph, "Fast
    curvature matrix-vector products for second-order gradient descent", Neural Computation 14, 2002).

    Parameters
    ----------
    objective : Objective
        Made with ``predict=``, so that the outputs are known.
    memory_budget : int, optional
        As for :class:`ihvp.Hessian`.

    Raises
    ------
    InvalidOption
        The objective has no ``predict``.
    MissingCapability
        The backend has no products with Gauss–Newton matrices.

    Examples
    --------
    ``predict(params, batch)`` gives the outputs, and ``loss(outputs, batch)`` a scalar:

    >>> import ihvp
    >>> def curvature(model, data, predict, loss):
    ...     return ihvp.GaussNewton(ihvp.Objective(loss, model, data, predict=predict))

    Finite differences have none:

    >>> import numpy as np
    >>> objective = ihvp.Objective(
    ...     lambda f, batch: f @ f, np.ones(2), predict=lambda w, batch: w, grad=lambda w, batch: 2 * w
    ... )
    >>> try:
    ...     curvature = ihvp.GaussNewton(objective)
    ... except ihvp.errors.MissingCapability as error:
    ...     print(str(error).partition(",")[0])
    The backend 'NumdiffBackend' does not implement 'gauss_newton'
    """

    _traceable = True

    def __init__(self, objective: Objective, memory_budget: int | None = None) -> None:
        super().__init__(objective, memory_budget)
        self._predict, self._output_loss = objective.require_predict()
        if not isinstance(objective.backend, SupportsGaussNewton):
            raise MissingCapability(
                type(objective.backend).__name__,
                "gauss_newton",
                "Put the model in a framework whose backend has it (torch, tf, jax), or use ihvp.Hessian or "
                "ihvp.OPG.",
            )
        self._backend = objective.backend

    @property
    def _ways(self) -> Ways:
        backend, given = self._backend, (self._predict, self._output_loss, self.objective.params)
        if isinstance(backend, SupportsLinearizeGaussNewton):
            return Ways(partial(self._backend.gnvp, *given), partial(backend.linearize_gauss_newton, *given))
        return Ways(partial(self._backend.gnvp, *given))

    def _batch_products(self) -> Callable[[Batch, Vector], Vector]:
        if isinstance(self._backend, SupportsBatchProducts):
            return self._backend.batch_products(self._output_loss, self.objective.params, self._predict)
        return self.batch_product
