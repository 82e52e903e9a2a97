"""A solve that the framework differentiates."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

from ihvp import algebra
from ihvp.backend import Params
from ihvp.data import ordered_like
from ihvp.errors import InvalidOption
from ihvp.implicit.joint import implicit
from ihvp.operators import Hessian
from ihvp.operators.base import LinearOperator, check_operator
from ihvp.solvers import Solver, inverse


def differentiable_solve(
    operator: LinearOperator,
    v: Any,
    damping: Any = 0.0,
    solver: Solver | None = None,
    *,
    params: Params = None,
) -> Any:
    r"""The solution of :math:`(A(\omega) + \lambda I)\, x = v`, as a value that the framework differentiates.

    ``loss.backward()`` of torch, ``jax.grad`` and ``tape.gradient`` of TensorFlow pass through it by v, by λ,
    and by the parameters ω where they are passed. With :math:`w = (A + \lambda I)^{-1} \bar x` for the
    derivative :math:`\bar x` by x, those by v, λ and ω are :math:`w`, :math:`-w^\top x` and
    :math:`-\nabla_\omega (w^\top A(\omega) x)`. Each is a certified solve; a second derivative is refused.

    Parameters
    ----------
    operator : LinearOperator
        A, of an objective on torch, JAX or TensorFlow.
    v
        As for :func:`ihvp.solve`; with TensorFlow also a flat tensor.
    damping : number or scalar array
        λ ≥ 0.
    solver : Solver, optional
        As for :func:`ihvp.solve`.
    params : optional
        The parameters that A is taken at and x is differentiated by, in the structure of the objective's: of
        :class:`ihvp.Hessian` alone. None: A stays as it is, a constant.

    Returns
    -------
    The solution in the form of ``v``.

    Raises
    ------
    SolverError
        A solve missed its tolerance, here or in the backward pass.
    MissingCapability
        The backend has no derivatives of its own.
    TracedValue
        A compiler traces the call, as ``jax.jit``, ``tf.function`` and ``torch.func`` do.
    InvalidOption
        ``params`` with another operator than a Hessian.

    Examples
    --------
    Numpy has no derivatives that this could be a part of:

    >>> import numpy as np
    >>> import ihvp
    >>> H = ihvp.Hessian(ihvp.Objective(params=np.ones(2), grad=lambda w, batch: 2 * w))
    >>> try:
    ...     x = ihvp.differentiable_solve(H, np.ones(2))
    ... except ihvp.errors.MissingCapability as error:
    ...     print(str(error).partition(",")[0])
    The backend 'NumdiffBackend' does not implement 'implicit'
    """
    check_operator(operator)
    if params is not None and type(operator) is not Hessian:
        raise InvalidOption(
            "params", params, f"None with {type(operator).__name__}, which is differentiated by v and λ alone"
        )
    objective: Any = getattr(operator, "objective", None)
    backend = implicit(getattr(objective, "backend", operator.space.backend))

    def enter(v: Any) -> Any:
        # The tensors of TensorFlow, whose vectors are numpy's.
        flat = hasattr(v, "shape") and not array_api_compat.is_array_api_obj(v)
        return operator.space.enter(algebra.to_numpy(v) if flat else v)

    def function(params: Params, v: Any, damping: Any) -> Any:
        at = operator
        if params is not None:
            # A copy: parameters may change in place before the backward pass.
            at = Hessian(objective.at(backend.unflatten(backend.flatten(params), params)))
        value = algebra.as_numpy(damping)
        solved = inverse(at, value.item() if value.size == 1 else damping, solver)
        flat, leave = enter(v)
        x = solved.solve(flat).x

        def pull_back(cotangents: Any) -> tuple[Any, Any, float]:
            w = solved.solve(enter(cotangents)[0]).x
            by_damping = -float(np.sum(algebra.dots(w, x)))
            return None if params is None else by_params(at, x, w), leave(w), by_damping

        def by_params(at: Any, x: Any, w: Any) -> Any:
            pairs = [(x, w)] if x.ndim == 1 else [(x[:, i], w[:, i]) for i in range(x.shape[1])]
            where, loss = at.objective.params, at.objective.loss
            total = at.objective.mean(
                lambda batch: sum(backend.curvature_gradient(loss, where, batch, *pair) for pair in pairs),
                "The gradient of a product with the Hessian",
            )
            return backend.unflatten(-total, params)

        return leave(x), pull_back

    params = None if params is None else ordered_like(params, objective.params)
    return backend.differentiable(function, params, v, damping)
