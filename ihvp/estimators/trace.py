"""The trace of a matrix that is known by its products."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.arguments import check_choice, check_seed
from ihvp.errors import InvalidOption
from ihvp.estimators.leave_one_out import range_basis
from ihvp.estimators.probes import (
    Estimate,
    checked_count,
    gaussians,
    host,
    identity_products,
    products,
    signs,
)
from ihvp.operators.base import LinearOperator, check_operator

Method = Literal["xtrace", "hutch++", "hutchinson"]

# Two samples at least tell a standard error: of two products, of three, and of one each.
_LEAST = {"xtrace": 4, "hutch++": 6, "hutchinson": 2}


@np.errstate(all="ignore")
def trace(
    operator: LinearOperator, *, num_samples: int | None = None, method: Method = "xtrace", seed: int = 0
) -> Estimate:
    r"""An unbiased estimate of :math:`\operatorname{tr} A`, with its standard error.

    Parameters
    ----------
    operator : LinearOperator
        A.
    num_samples : int, optional
        The products to spend, from 2 (4 and 6 for the other methods) to P, by default 100 or P. With P of
        them the trace is computed exactly, by the columns of the identity.
    method : {"xtrace", "hutch++", "hutchinson"}
        ``"xtrace"``: the trace of a low-rank approximation from all probes but one, and Hutchinson's estimate
        of the rest by that one, averaged over which (Epperly, Tropp and Webber, "XTrace: Making the most of
        every sample in stochastic trace estimation", SIAM Journal on Matrix Analysis and Applications 45,
        2024). Its error falls with the decay of the eigenvalues. Holds 2 ``num_samples`` vectors.
        ``"hutch++"``: the same with probes of their own for each part (Meyer, Musco, Musco and Woodruff,
        SOSA 2021); the samples behind its standard error are independent.
        ``"hutchinson"``: the mean of :math:`\omega^T A \omega` over random signs; holds 64 vectors at most.
    seed : int
        Of the probes.

    Returns
    -------
    Estimate
        ``.value`` and ``.standard_error`` are floats; also ``float(…)``.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> A = ihvp.Dense(np.diag(0.5 ** np.arange(100)))
    >>> estimate = ihvp.trace(A, num_samples=40)
    >>> round(estimate.value, 4), estimate.standard_error < 1e-3
    (2.0, True)
    """
    check_operator(operator)
    check_choice("method", method, get_args(Method))
    check_seed(seed)
    size = operator.space.size
    count = checked_count("num_samples", num_samples, 100, size)
    if count == size:
        exact = sum(float(algebra.dots(e, column).sum()) for e, column in identity_products(operator))
        return Estimate(exact, 0.0, size)
    if count < _LEAST[method]:
        raise InvalidOption(
            "num_samples", count, f"at least {_LEAST[method]} for method={method!r}, or P = {size}"
        )
    generator = np.random.default_rng(seed)
    estimator = {"xtrace": _xtrace, "hutch++": _hutch_plus_plus, "hutchinson": _hutchinson}[method]
    return estimator(operator, count, generator)


def _xtrace(operator: LinearOperator, count: int, generator: np.random.Generator) -> Estimate:
    size, n = operator.space.size, count // 2
    probes = gaussians(operator.space, generator, n)
    found = range_basis(operator, probes)
    core = host(found.basis.T @ found.product)
    if found.directions is None:
        return Estimate(float(np.trace(core)), 0.0, n + found.basis.shape[1])
    s, r = found.directions, found.triangle
    w = host(found.basis.T @ probes)
    x = w - s * np.sum(s * w, axis=0)
    rest = np.sum(w * r, axis=0) - 2 * np.sum(x * r, axis=0) + np.sum(x * (core @ x), axis=0)
    # Only the direction of what a probe has outside the basis counts, scaled to the length it has on average.
    lengths = algebra.norms(probes) ** 2 - np.sum(x * x, axis=0)
    samples = np.trace(core) - np.sum(s * (core @ s), axis=0) + (size - n + 1) * rest / lengths
    return Estimate(float(samples.mean()), _standard_error(samples), 2 * n)


def _hutch_plus_plus(operator: LinearOperator, count: int, generator: np.random.Generator) -> Estimate:
    n = count // 3
    found = range_basis(operator, gaussians(operator.space, generator, n))
    probes = signs(operator.space, generator, count - 2 * n)
    probes = probes - found.basis @ (found.basis.T @ probes)
    samples = algebra.dots(probes, products(operator, probes))
    captured = float(np.trace(host(found.basis.T @ found.product)))
    matvecs = n + found.basis.shape[1] + probes.shape[1]
    return Estimate(captured + float(samples.mean()), _standard_error(samples), matvecs)


def _hutchinson(operator: LinearOperator, count: int, generator: np.random.Generator) -> Estimate:
    samples = np.zeros(0)
    while samples.size < count:
        probes = signs(operator.space, generator, min(64, count - samples.size))
        samples = np.append(samples, algebra.dots(probes, products(operator, probes)))
    return Estimate(float(samples.mean()), _standard_error(samples), count)


def _standard_error(samples: NDArray[np.float64]) -> float:
    return float(samples.std(ddof=1) / np.sqrt(samples.size))
