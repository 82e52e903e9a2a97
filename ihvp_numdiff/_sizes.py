"""Parameters of unlike sizes: where one length serves all of them, and the groups that have their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from ihvp.backend import Vector
from ihvp_numdiff._difference import norm, power_of_two

_LARGE = 100.0
_SMALL = 1e-4
# Of a thousand normal numbers with the standard deviation 0.001, a coarse initialisation, 80 are below _SMALL.
_SHARE = 0.1
_ZEROS = 1 / 3
_RANGE = 1e3


def alike(arrays: list[Vector], x_norm: float) -> bool:
    """Whether the entries of x say that lengths of ``1 + ‖x‖`` suit all: sizes near 1, with zeros and a few small.

    No entry is above 100, at most a tenth of each array is below 1e-4 without being zero, and less than
    a third of all entries is zero: biases may be, but parameters that are all zero tell no length.
    """
    if x_norm > _LARGE and any(_largest(array) > _LARGE for array in arrays if array.shape[0]):
        return False
    total = sum(array.shape[0] for array in arrays)
    zeros = 0
    for array in arrays:
        xp: Any = array_namespace(array)
        small = _count(xp, array < _SMALL) - _count(xp, array <= -_SMALL)
        if small == 0:
            continue
        zero = _count(xp, array == 0)
        zeros += zero
        if small - zero > _SHARE * array.shape[0]:
            return False
    return zeros < _ZEROS * total


@dataclass(frozen=True, eq=False)
class Group:
    """The part of v along parameters of like size.

    Attributes
    ----------
    v : array, shape (P,)
        The part, zero elsewhere.
    scale : float
        The power of two just below its largest entry.
    size : float
        The root mean square of the parameters, weighted by ``v²``; zero if they are zero.
    """

    v: Vector
    scale: float
    size: float


def groups(arrays: list[Vector], v: Vector) -> Iterator[Group]:
    """The parts of v whose sum is v: the sizes in one lie within a factor of 1,000, and zeros come last."""
    xp: Any = array_namespace(v)
    sizes = xp.abs(xp.concat(arrays))
    zero = xp.zeros_like(v)
    top = float(xp.max(sizes))
    while True:
        bottom = top / _RANGE
        part = xp.where((sizes <= top) & (sizes > bottom) if top else sizes == 0, v, zero)
        largest = float(xp.max(xp.abs(part)))
        if largest:
            scale = power_of_two(largest)
            unit = part / scale
            yield Group(part, scale, norm(unit * sizes) / norm(unit))
        if top == 0.0:
            return
        top = float(xp.max(xp.where(sizes <= bottom, sizes, xp.zeros_like(sizes))))


def _largest(array: Vector) -> float:
    xp: Any = array_namespace(array)
    return max(float(xp.max(array)), -float(xp.min(array)))


def _count(xp: Any, mask: Any) -> int:
    return int(xp.count_nonzero(mask))
