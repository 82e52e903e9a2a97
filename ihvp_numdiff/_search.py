"""The step of a difference, found from how the difference itself changes with the step.

The truncation error falls with the step and the rounding error rises, so that differences of neighbouring
steps agree best where both are small. The steps are tried one after another, as Ridders does (Accurate
computation of F'(x) and F'(x)F''(x), Advances in Engineering Software 4, 1982), and the disagreement of
neighbours is the estimate of the error. A difference that is lost in rounding asks for a longer step, any
other one for a shorter (Gill, Murray, Saunders and Wright, Computing forward-difference intervals for
numerical optimization, SIAM J. Sci. Stat. Comput. 4, 1983).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ihvp.backend import Vector
from ihvp_numdiff._difference import norm

# A power of two, as all steps are, and so long that the errors of neighbours have little in common.
_RATIO = 8.0
# The rounding inside a gradient, its sums and cancellations, in units of its last rounding.
_ROUNDINGS = 32.0
# Neighbours that agree as well as this are on the slope of one of the two errors, not beyond both.
_SLOPE = 0.1


@dataclass(frozen=True, eq=False)
class Difference:
    """A product, and the estimate of the norm of its error: absolute, and in parts of the product."""

    product: Vector
    error: float
    relative: float


def search(
    product: Callable[[float], Vector],
    step: float,
    shortest: float,
    longest: float,
    *,
    tolerance: float,
    rounding: float,
    significant: float,
) -> Difference:
    """The product by the step, from ``step`` on, that agrees with its neighbour.

    Parameters
    ----------
    product : callable
        The product by the difference of a given step.
    shortest, longest : float
        The bounds of the steps.
    tolerance : float
        The relative disagreement that will do. If all are larger, the least decides.
    rounding : float
        The norm of a gradient's last rounding.
    significant : float
        A product that is lost in rounding will do where this is below ``tolerance · significant``.
    """
    first = product(step)
    best = Difference(first, math.inf, math.inf)
    shorter = _neighbours(product, first, step, 1 / _RATIO, shortest, rounding)
    longer = _neighbours(product, first, step, _RATIO, longest, rounding)
    for walk in (shorter, longer, shorter):
        lowest = best.relative
        for finer, found in walk:
            if best.error == math.inf:
                # The start is where the error should be least: its neighbour only checks it.
                found = Difference(first, found.error, found.relative)
            lost = 0.0 < found.error <= _ROUNDINGS * rounding / finer
            if found.relative <= tolerance or (lost and found.error <= tolerance * significant):
                return found
            if found.relative < best.relative:
                best = found
            lowest = min(lowest, found.relative)
            if lowest < _SLOPE and found.relative > 4 * lowest:
                break
            if walk is shorter and lost and best.product is first:
                break
        if best.relative < _SLOPE and best.product is not first:
            break
    return best


def _neighbours(
    product: Callable[[float], Vector], last: Vector, step: float, ratio: float, bound: float, rounding: float
) -> Iterator[tuple[float, Difference]]:
    """The differences of ``step · ratio``, ``step · ratio²``, …, each with the finer step of the pair compared."""
    while (step * ratio <= bound) if ratio > 1 else (step * ratio >= bound):
        current = product(step * ratio)
        size, error = max(norm(last), norm(current)), norm(last - current)
        if ratio > 1 and not math.isfinite(error):
            return
        step *= ratio
        finer = step if ratio < 1 else step / ratio
        error = max(error, rounding / finer if size == 0.0 else 0.0)
        yield finer, Difference(current, error, min(error / size, 1.0) if size else 1.0)
        last = current
