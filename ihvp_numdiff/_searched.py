"""Products where the sizes of the parameters do not tell how long a step may be."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

from ihvp.backend import Vector
from ihvp_numdiff._difference import automatic_length, central_difference, norm, power_of_two
from ihvp_numdiff._near import Near
from ihvp_numdiff._search import Difference, search
from ihvp_numdiff._sizes import Group, groups

# A step of fewer roundings of the parameters than this is mostly lost when added to them.
_LOST = 128.0
# Zeros do not tell how far they may be moved.
_FARTHEST = 8.0**10


def tolerance(epsilon: float) -> float:
    """The relative disagreement of two differences that is no more than their ordinary errors."""
    return float(epsilon**0.375)


def searched_product(near: Near, v: Vector, order: int) -> tuple[Vector, float]:
    """``H v`` as the sum of products along parameters of like size, and the estimate of its error.

    The product is linear in v. Each part starts with the step that moves its parameters by a fraction
    of their own size, or zeros as if it were 1, and goes on to the step that neighbours agree with.
    """
    xp: Any = array_namespace(v)
    total, error, rounding = xp.zeros_like(v), 0.0, near.rounding()
    for group in groups(near.arrays, v):
        found = _along(near, group, order, rounding, norm(total) / group.scale)
        total += group.scale * found.product
        error += group.scale * found.error
    return total, error


def _along(near: Near, group: Group, order: int, rounding: float, significant: float) -> Difference:
    def product(step: float) -> Vector:
        return central_difference(lambda m: near.difference(group.v, group.scale, m), step, order)

    resolution = near.epsilon * group.size / 2
    length = automatic_length(0.0, near.epsilon, order)
    start = power_of_two(length * (group.size or 1.0))
    return search(
        product,
        start,
        shortest=_LOST * resolution or start / _FARTHEST,
        longest=max(group.size / 8, length) if group.size else start * _FARTHEST,
        tolerance=tolerance(near.epsilon),
        rounding=rounding,
        resolution=resolution,
        significant=significant,
    )
