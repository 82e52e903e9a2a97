"""A damping from the measured ends of the spectrum."""

from __future__ import annotations

import numpy as np

from ihvp.arguments import check_number, check_seed
from ihvp.backend import Vector
from ihvp.estimators.probes import checked_count, gaussians, products
from ihvp.operators.base import LinearOperator, check_operator
from ihvp.solvers.ritz import ritz_range


@np.errstate(all="ignore")
def suggest_damping(
    operator: LinearOperator, *, condition: float | None = None, steps: int | None = None, seed: int = 0
) -> float:
    r"""The smallest λ ≥ 0 that makes :math:`A + \lambda I` definite, of at most the wanted condition number.

    The ends of the spectrum are measured by Lanczos steps from a random vector, and each is taken to reach
    beyond its Ritz value by twice that value's residual: an eigenvalue lies within one of it, the last one
    seldom beyond two. More steps see more, and need less of this margin. 0 where A is definite and well
    conditioned already.

    Parameters
    ----------
    operator : LinearOperator
        A.
    condition : float, optional
        The largest condition number to allow, above 1. By default ``eps ** -0.5`` of the dtype, 6.7e7 in
        float64 and 2.9e3 in float32, with which a solution keeps half of its digits.
    steps : int, optional
        The products to spend, from 1 to P, by default 50 or P.
    seed : int
        Of the random vector.

    Returns
    -------
    float
        λ, for ``ihvp.solve(A, v, damping=λ)`` or ``A + λ``; 1 for a matrix that is zero.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> A = ihvp.Dense(np.diag([-1.0, 0.0, 10.0]))
    >>> damping = ihvp.suggest_damping(A, condition=100.0)
    >>> round(damping, 4), round((10 + damping) / (-1 + damping), 4)
    (1.1111, 100.0)
    """
    check_operator(operator)
    check_seed(seed)
    space = operator.space
    count = checked_count("steps", steps, 50, space.size)
    if condition is None:
        condition = space.product_eps**-0.5
    check_number("condition", condition, lambda number: number > 1, "a finite number above 1")

    def product(v: Vector) -> Vector:
        return products(operator, v[:, None])[:, 0]

    start = gaussians(space, np.random.default_rng(seed), 1)[:, 0]
    ritz = ritz_range(product, start, count)
    lowest, highest = ritz.lowest - 2 * ritz.lowest_error, ritz.highest + 2 * ritz.highest_error
    # Where all eigenvalues are negative, the lowest sets the scale of the damped matrix.
    highest = max(highest, abs(lowest))
    if highest == 0:
        return 1.0
    return float(max((highest - condition * lowest) / (condition - 1), 0.0))
