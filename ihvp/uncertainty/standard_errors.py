"""Standard errors and confidence intervals, in the structure of the parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ihvp import algebra
from ihvp.arguments import check_instance, check_number
from ihvp.backend import Vector
from ihvp.errors import InvalidOption
from ihvp.objective.restricted import in_structure
from ihvp.uncertainty.covariance import Covariance
from ihvp.uncertainty.delta_method import Function, gradients_of, value_of


class Interval(NamedTuple):
    """The ends of confidence intervals, in the structure of what they are for.

    Examples
    --------
    >>> Interval(lower=-1.0, upper=2.0).upper
    2.0
    """

    lower: Any
    upper: Any


def standard_errors(
    covariance: Covariance,
    function: Function | None = None,
    *,
    gradient: Any = None,
    num_samples: int | None = None,
    seed: int = 0,
) -> Any:
    r"""The standard errors of the parameters, or of functions of them by the delta method.

    .. math:: \sqrt{\Sigma_{ii}} \qquad \text{or} \qquad \sqrt{\nabla g^\top \Sigma\, \nabla g}

    Parameters
    ----------
    covariance : Covariance
        Σ.
    function, gradient : optional
        g or its derivative, as for :meth:`Covariance.of <ihvp.uncertainty.Covariance.of>`.
    num_samples, seed : int, optional
        As for :meth:`Covariance.diagonal <ihvp.uncertainty.Covariance.diagonal>`, which also tells how well
        an estimate by samples is known.

    Returns
    -------
    The structure of the parameters, with 0 for those that ``only=`` left out of the objective; or numpy in
    the shape of what ``function`` returns.

    Raises
    ------
    InvalidOption
        So few samples leave a variance unknown: it is less than two of its own standard errors.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> y = np.array([[1.0], [2.0], [3.0], [4.0]])
    >>> objective = ihvp.Objective(
    ...     params={"mean": np.array([2.5])}, data=y, grad=lambda w, y: {"mean": w["mean"] - y.mean(axis=0)}
    ... )
    >>> sigma = ihvp.covariance(objective, "sandwich")
    >>> ihvp.standard_errors(sigma)["mean"].round(6)
    array([0.559017])
    >>> float(ihvp.standard_errors(sigma, gradient={"mean": np.array([2.0])}).round(6))  # of twice the mean
    1.118034
    """
    check_instance("covariance", covariance, Covariance, "what ihvp.covariance returns")
    if function is None and gradient is None:
        objective, deviations = covariance.objective, _deviations(covariance, num_samples, seed)
        return in_structure(objective.backend, deviations, objective.params)
    J, shape = gradients_of(covariance.objective, function, gradient)
    return np.sqrt(algebra.dots(J, covariance.apply(J))).reshape(shape)[()]


def confidence_intervals(
    covariance: Covariance,
    function: Function | None = None,
    *,
    gradient: Any = None,
    level: float = 0.95,
    degrees_of_freedom: float | None = None,
    num_samples: int | None = None,
    seed: int = 0,
) -> Interval:
    r"""Confidence intervals of the parameters, or of functions of them: estimate ± q standard errors.

    Parameters
    ----------
    covariance, function, gradient, num_samples, seed
        As for :func:`standard_errors`; a ``gradient`` beside the ``function`` saves differentiating it.
    level : float
        The probability of covering the truth, between 0 and 1.
    degrees_of_freedom : float, optional
        q is the quantile of Student's distribution with so many; by default that of the normal distribution.

    Returns
    -------
    Interval
        ``.lower`` and ``.upper``, each in the structure of the parameters, or numpy in the shape of what
        ``function`` returns.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> y = np.array([[1.0], [2.0], [3.0], [4.0]])
    >>> objective = ihvp.Objective(
    ...     params=np.array([2.5]), data=y, grad=lambda mean, y: mean - y.mean(axis=0)
    ... )
    >>> sigma = ihvp.covariance(objective, dispersion=5 / 3)
    >>> interval = ihvp.confidence_intervals(sigma, degrees_of_freedom=3)
    >>> interval.lower.round(3), interval.upper.round(3)
    (array([0.446]), array([4.554]))
    """
    from scipy.special import ndtri, stdtrit  # a tenth of the time that importing ihvp may take

    check_instance("covariance", covariance, Covariance, "what ihvp.covariance returns")
    check_number("level", level, lambda number: 0 < number < 1, "a number between 0 and 1, both excluded")
    q = float(ndtri((1 + level) / 2))
    if degrees_of_freedom is not None:
        check_number(
            "degrees_of_freedom", degrees_of_freedom, lambda n: n > 0, "a finite number > 0, or None"
        )
        q = float(stdtrit(degrees_of_freedom, (1 + level) / 2))
    objective = covariance.objective
    if function is not None:
        value = value_of(objective, function)
        deviations = standard_errors(
            covariance, None if gradient is not None else function, gradient=gradient
        )
        return Interval(value - q * deviations, value + q * deviations)
    if gradient is not None:
        raise InvalidOption(
            "function", None, "the function too, whose value is in the middle of the interval"
        )
    half, value = q * _deviations(covariance, num_samples, seed), objective.backend.flatten(objective.params)
    return Interval(
        *(objective.backend.unflatten(end, objective.params) for end in (value - half, value + half))
    )


def _deviations(covariance: Covariance, num_samples: int | None, seed: int) -> Vector:
    variances = covariance.diagonal(num_samples=num_samples, seed=seed)
    xp = covariance.space.xp
    if bool(xp.any(variances.value < 2 * variances.standard_error)):
        unknown = int(xp.sum(xp.astype(variances.value < 2 * variances.standard_error, xp.int64)))
        raise InvalidOption(
            "num_samples",
            variances.matvecs,
            f"more: {unknown:,} of {covariance.space.size:,} variances are known to no better than their own "
            "size. covariance.diagonal(num_samples=…) tells how well, solver=ihvp.Direct() computes them, "
            "and gradient=… takes one solve for a single function",
        )
    return variances.value**0.5
