"""The hypergradient in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ihvp.backend import CurvatureBackend, GradientFunction, Params
from ihvp.implicit.inner_problem import Hypergradient, InnerProblem
from ihvp.solvers import Solver
from ihvp.weighting import Weights


def hypergradient(
    outer: Callable[..., Any] | GradientFunction | Sequence[Any],
    inner: Callable[..., Any] | GradientFunction,
    params: Params,
    hyper: Any,
    train_data: Any = None,
    test_data: Any = None,
    damping: float = 0.0,
    solver: Solver | None = None,
    *,
    bound: bool = True,
    batch_size: int | None = None,
    reduction: str = "mean",
    weights: Weights | None = None,
    backend: str | CurvatureBackend | None = None,
    checks: bool = True,
) -> Hypergradient:
    r"""The derivative of an outer loss at the optimum of an inner one, by the hyperparameters.

    .. math:: \frac{d}{dh}\, C_{outer}(\omega^*(h), h) = \frac{\partial C_{outer}}{\partial h}
        - \frac{\partial^2 C_{inner}}{\partial h\, \partial\omega} (H + \lambda I)^{-1}
        \frac{\partial C_{outer}}{\partial\omega}

    by the implicit function theorem, with the Hessian H of the inner loss by the parameters (Pedregosa,
    "Hyperparameter optimization with approximate gradient", ICML 2016; Lorraine, Vicol and Duvenaud,
    "Optimizing millions of hyperparameters by implicit differentiation", AISTATS 2020).

    In a loop over hyperparameters make one :class:`InnerProblem`, so that what was compiled stays.

    Parameters
    ----------
    outer : callable, or list of them
        ``outer(params, hyper, batch)``, a scalar. Several share one block solve.
    inner : callable
        ``inner(params, hyper, batch)``, a scalar; the training loss with all of its terms.
    params
        The optimum of the inner loss, as for :class:`ihvp.Objective`.
    hyper
        Numbers, arrays, or structures of them; of torch and Keras also a model.
    train_data, test_data : optional
        The data of the inner and of the outer loss, as for :class:`ihvp.Objective`. For several outer losses
        ``test_data`` is a list of one for each, or data in memory that they share.
    damping : float
        λ ≥ 0.
    solver : Solver, optional
        As for :func:`ihvp.solve`.
    bound : bool
        Whether to bound the error, which takes a second solve.
    batch_size, reduction, weights, backend, checks : optional
        As for :class:`ihvp.Objective`; the weights are those of the training examples.

    Raises
    ------
    SolverError
        The solve missed its tolerance.
    HyperparametersWithoutEffect
        Nothing depends on some of the hyperparameters.
    LossError
        As for :class:`ihvp.Objective`.

    Warns
    -----
    NotAtOptimum
        The gradient of the inner loss is not small.
    NoImplicitPart
        The optimum does not depend on some of the hyperparameters.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> from ihvp.backend import GradientFunction
    >>> inner = GradientFunction(lambda w, h, batch: (w - 1 + h * w, 0.5 * w @ w))
    >>> outer = GradientFunction(lambda w, h, batch: (2 * w, 0.0))
    >>> result = ihvp.hypergradient(outer, inner, np.array([0.5]), 1.0)
    >>> round(result.gradient, 6), result.error < 1e-6
    (-0.25, True)
    """
    problem = InnerProblem(
        inner,
        params,
        hyper,
        train_data,
        damping,
        solver,
        batch_size=batch_size,
        reduction=reduction,
        weights=weights,
        backend=backend,
        checks=checks,
    )
    return problem.hypergradient(outer, test_data, bound=bound)
