"""A probe for operators that are not symmetric."""

from __future__ import annotations

import numpy as np

from ihvp import algebra
from ihvp.errors import NonFinite, NotSymmetric
from ihvp.operators.base import LinearOperator


def check_symmetric(operator: LinearOperator) -> None:
    """Compare ``uᵀ(Av)`` with ``vᵀ(Au)`` for random u and v: two products.

    The difference has the size of ``‖A − Aᵀ‖_F``, so that an asymmetry beyond rounding, and beyond the
    backend's product error, does not stay hidden.
    """
    space = operator.space
    probes = space.asarray(np.random.default_rng(0).standard_normal((space.size, 2)))
    products = operator.apply(probes)
    crossed = algebra.columns(products, np.array([1, 0]))
    if not algebra.all_finite(products):
        raise NonFinite("A product with the operator")
    left, right = (float(value) for value in algebra.dots(probes, crossed))
    noise = sum(operator.product_error(algebra.column(probes, place)) for place in (0, 1))
    # Below the smallest normal number an entry has few digits, or none.
    tiny = space.size * float(space.xp.finfo(space.dtype).smallest_normal)
    allowed = 10 * (space.product_eps**0.5 * float(algebra.norms(products).max()) + noise + tiny)
    if not abs(left - right) <= allowed:
        raise NotSymmetric(left, right, allowed)
