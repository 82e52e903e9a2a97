"""Products where the sizes of the parameters do not tell how long a step may be."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

from ihvp.backend import Vector
from ihvp_numdiff._difference import automatic_length, central_difference, norm, power_of_two
from ihvp_numdiff._near import Near
from ihvp_numdiff._search import Difference, search
from ihvp_numdiff._sizes import Part, parts

# A step of fewer roundings of the parameters than this is mostly lost when added to them.
_LOST = 128.0
# Zeros do not tell how far they may be moved.
_FARTHEST = 8.0**10


def tolerance(epsilon: float) -> float:
    """The relative disagreement of two differences that is no more than their ordinary errors."""
    return float(epsilon**0.375)


def product_by_parts(near: Near, v: Vector, order: int) -> tuple[Vector, float]:
    """``H v`` as the sum of products along parameters of like size, and the estimate of its error.

    The product is linear in v. Each part starts with the step that moves its parameters by a fraction
    of their own size, or zeros as if it were 1, and goes on to the step that neighbours agree with.
    """
    xp: Any = array_namespace(v)
    total, error, rounding = xp.zeros_like(v), 0.0, near.rounding()
    for part in parts(near.arrays, v):
        found = _along(near, part, order, rounding, norm(total) / part.scale)
        total += part.scale * found.product
        error += part.scale * found.error
    return total, error


def _along(near: Near, part: Part, order: int, rounding: float, significant: float) -> Difference:
    def product(step: float) -> Vector:
        return central_difference(lambda m: near.difference(part.v, part.scale, m), step, order)

    resolution = near.epsilon * part.size / 2
    length = automatic_length(0.0, near.epsilon, order)
    start = power_of_two(length * (part.size or 1.0))
    return search(
        product,
        start,
        shortest=_LOST * resolution or start / _FARTHEST,
        longest=max(part.size / 8, length) if part.size else start * _FARTHEST,
        tolerance=tolerance(near.epsilon),
        rounding=rounding,
        resolution=resolution,
        significant=significant,
    )
