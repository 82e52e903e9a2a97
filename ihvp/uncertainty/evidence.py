"""The evidence of a model, and the precisions with which it is largest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ihvp.errors import NoEvidenceMaximum

# A slope that counts as 0, in relation to what it is the difference of.
_FLAT = 1e-4
# By so many factors of e a search moves a precision at most.
_FAR = 40.0


@dataclass(frozen=True)
class Evidence:
    r"""The logarithm of the marginal likelihood, :math:`\log \int p(D \mid \omega)\, p(\omega)\, d\omega`.

    Attributes
    ----------
    value : float
    standard_error : float
        Of ``value`` over other seeds, where the determinant is estimated; 0 where it is exact.
    log_likelihood : float
        ``log p(D | ω)`` at the parameters.
    slopes : dict of str to float
        The derivative of ``value`` by the logarithm of each prior precision, with ``"noise"`` that by the
        logarithm of the noise. 0 at a maximum.
    effective_parameters : float
        MacKay's γ: how many directions the data decides, not the prior.
    gap : float
        By how much a Newton step would raise ``log p(D, ω)``: 0 at its maximum, which the formula is for.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> objective = ihvp.Objective(
    ...     lambda w, batch: float((w[0] - 2.0) ** 2 / 2), np.ones(1), grad=lambda w, batch: w - 2.0
    ... )
    >>> found = ihvp.Laplace(objective, ihvp.Dense(np.eye(1))).log_marginal_likelihood()
    >>> round(found.value, 6), round(found.effective_parameters, 6)  # −1/2 − 1/2 − log(2)/2
    (-1.346574, 0.5)
    """

    value: float
    standard_error: float
    log_likelihood: float
    slopes: dict[str, float]
    effective_parameters: float
    gap: float

    def __float__(self) -> float:
        return self.value


def maximise(
    evidence: Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]],
    start: NDArray[np.float64],
    scales: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The logarithms of precisions with which the evidence is largest, as far as a search from here sees.

    Parameters
    ----------
    evidence : callable
        Takes logarithms, gives the value and its slopes.
    start : ndarray
    scales : ndarray
        What each slope is the difference of, about: half the number of parameters that it belongs to.

    Raises
    ------
    NoEvidenceMaximum
        A slope is not 0 at the end.
    """
    from scipy.optimize import minimize  # takes longer to import than most of what is asked for

    unit = float(scales.sum())

    def negative(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        value, slopes = evidence(point)
        return -value / unit, -slopes / unit

    bounds = [(place - _FAR, place + _FAR) for place in start.tolist()]
    found = minimize(
        negative,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"ftol": 0.0, "gtol": 1e-10, "maxiter": 500},
    )
    slopes = -found.jac * unit
    if np.any(np.abs(slopes) > _FLAT * scales):
        raise NoEvidenceMaximum(
            f"After {found.nit} steps the evidence has the slopes {np.array2string(slopes, precision=2)} by "
            f"the logarithms of the precisions, at {np.array2string(np.exp(found.x), precision=3)}; expected "
            "0. Start from another prior_precision=, or let fewer parts have one of their own."
        )
    return np.asarray(found.x)
