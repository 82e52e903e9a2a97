"""The diagonal of a matrix that is known by its products."""

from __future__ import annotations

import numpy as np

from ihvp.arguments import check_seed
from ihvp.errors import InvalidOption
from ihvp.estimators.leave_one_out import range_basis
from ihvp.estimators.probes import Estimate, checked_count, identity_products, native, signs
from ihvp.operators.base import LinearOperator, check_operator


@np.errstate(all="ignore")
def diagonal(operator: LinearOperator, *, num_samples: int | None = None, seed: int = 0) -> Estimate:
    r"""An unbiased estimate of the diagonal of A, with the standard error of each entry.

    XDiag: the diagonal of a low-rank approximation from all probes but one, and
    :math:`\omega \odot (I - QQ^T) A \omega` of that one for the rest, averaged over which (Epperly, Tropp and
    Webber, "XTrace: Making the most of every sample in stochastic trace estimation", SIAM Journal on Matrix
    Analysis and Applications 45, 2024, section 2.4). Its error falls with the decay of the eigenvalues.

    Parameters
    ----------
    operator : LinearOperator
        A.
    num_samples : int, optional
        The products to spend, from 4 to P, by default 100 or P. With P of them the diagonal is computed
        exactly, by the columns of the identity. Twice as many vectors are held.
    seed : int
        Of the probes.

    Returns
    -------
    Estimate
        ``.value`` and ``.standard_error`` are native vectors ``(P,)``.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> A = ihvp.Dense(np.diag([3.0, 2.0, 1.0]))
    >>> ihvp.diagonal(A).value
    array([3., 2., 1.])
    """
    check_operator(operator)
    check_seed(seed)
    space = operator.space
    count = checked_count("num_samples", num_samples, 100, space.size)
    xp = space.xp
    if count == space.size:
        value = space.zeros()
        for columns, product in identity_products(operator):
            value = value + xp.sum(columns * product, axis=1)
        return Estimate(value, space.zeros(), count)
    if count < 4:
        raise InvalidOption("num_samples", count, f"at least 4, or P = {space.size}")
    n = count // 2
    probes = signs(space, np.random.default_rng(seed), n)
    found = range_basis(operator, probes)
    captured = xp.sum(found.basis * found.product, axis=1)
    if found.directions is None:
        return Estimate(captured, space.zeros(), n + found.basis.shape[1])
    s = native(found.directions, probes)
    alone = found.basis @ s
    scales = native(np.sum(found.directions * found.triangle, axis=0), probes)
    samples = alone * (probes * scales - found.product @ s)
    mean = xp.mean(samples, axis=1)
    variance = xp.sum((samples - mean[:, None]) ** 2, axis=1) / (n * (n - 1))
    return Estimate(captured + mean, variance**0.5, 2 * n)
