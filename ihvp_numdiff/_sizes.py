"""The sizes of parameters: whether one step suits all, and the parts of v that have steps of their own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from ihvp.backend import Vector
from ihvp_numdiff._difference import norm, power_of_two

_LARGE = 100.0
_SMALL = 3e-5
_SHARE = 0.1
_ZEROS = 1 / 3
_RANGE = 1e3


def alike(arrays: list[Vector]) -> bool:
    """Whether the sizes of the parameters say that a step in parts of ``1 + ‖x‖`` suits all of them.

    No size is above 100. At most a tenth of each array is below 3e-5 of one more than the largest size: of
    normal numbers, a few always are. Zeros do not count, for biases start there, unless they are a third
    of all parameters: then nothing tells how far these may be moved.
    """
    arrays = [array for array in arrays if array.shape[0]]
    largest = max(_largest(array) for array in arrays)
    # Numbers that are not finite have no product by any step; the plain one is as good.
    if _LARGE < largest < math.inf:
        return False
    small, zeros = _SMALL * (1 + largest), 0
    for array in arrays:
        xp: Any = array_namespace(array)
        below = _count(xp, array < small) - _count(xp, array <= -small)
        zero = _count(xp, array == 0) if below else 0
        if below - zero > _SHARE * array.shape[0]:
            return False
        zeros += zero
    return bool(zeros < _ZEROS * sum(array.shape[0] for array in arrays))


@dataclass(frozen=True, eq=False)
class Part:
    """v along parameters of like size, and zero along the others."""

    v: Vector  # (P,)
    scale: float  # the power of two just below the largest entry of v
    size: float  # the root mean square of the parameters, weighted by v²; zero if they are zero


def parts(arrays: list[Vector], v: Vector) -> Iterator[Part]:
    """The parts that v is the sum of: the sizes in one lie within a factor of 1,000, and zeros come last."""
    xp: Any = array_namespace(v)
    sizes = xp.abs(xp.concat(arrays))
    zero = xp.zeros_like(v[:1])
    top = float(xp.max(sizes))
    while True:
        bottom = top / _RANGE
        part = xp.where((sizes <= top) & (sizes > bottom) if top else sizes == 0, v, zero)
        largest = float(xp.max(xp.abs(part)))
        if largest:
            scale = power_of_two(largest)
            yield Part(part, scale, _weighted_size(part / (2 * scale), sizes))
        if top == 0.0:
            return
        top = float(xp.max(xp.where(sizes <= bottom, sizes, xp.zeros_like(sizes[:1]))))


def _weighted_size(v: Vector, sizes: Vector) -> float:
    return norm(v * sizes) / norm(v)


def _largest(array: Vector) -> float:
    xp: Any = array_namespace(array)
    return max(float(xp.max(array)), -float(xp.min(array)))


def _count(xp: Any, mask: Any) -> int:
    return int(xp.count_nonzero(mask))
