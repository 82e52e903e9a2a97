"""A probe for operators that are not symmetric."""

from __future__ import annotations

import numpy as np

from ihvp import algebra
from ihvp.errors import NotSymmetric
from ihvp.operators.base import LinearOperator


def check_symmetric(operator: LinearOperator) -> None:
    """Compare ``uᵀ(Av)`` with ``vᵀ(Au)`` for random u and v: two products.

    The difference has the size of ``‖A − Aᵀ‖_F``, so that an asymmetry beyond rounding, and beyond the
    backend's product error, does not stay hidden.

    Raises
    ------
    NotSymmetric
    """
    space = operator.space
    probes = space.asarray(np.random.default_rng(0).standard_normal((space.size, 2)))
    products = operator.apply(probes)
    crossed = algebra.columns(products, np.array([1, 0]))
    left, right = (float(value) for value in algebra.dots(probes, crossed))
    noise = sum(operator.product_error(algebra.column(probes, place)) for place in (0, 1))
    allowed = 10 * (space.eps**0.5 * float(algebra.norms(products).max()) + noise)
    if not abs(left - right) <= allowed:
        raise NotSymmetric(left, right, allowed)
