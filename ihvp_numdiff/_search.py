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
from dataclasses import dataclass, replace

from ihvp.backend import Vector
from ihvp_numdiff._difference import norm

# A power of two, as all steps are, and so long that the errors of neighbours have little in common.
_RATIO = 8.0
# The rounding inside a gradient, its sums and cancellations, in units of its last rounding.
_ROUNDINGS = 32.0
# Neighbours that agree as well as this are near the least error: where it grows again, it was passed.
_NEAR = 0.1
# Neighbours that disagree by more than this know nothing of the product.
_AGREES = 0.5


@dataclass(frozen=True, eq=False)
class Difference:
    """A product by the difference of a step, and the estimate of the norm of its error."""

    product: Vector
    step: float
    error: float
    size: float
    """The norm of the product, or of its neighbour's where that is larger."""

    @property
    def relative(self) -> float:
        """The error in parts of the product; 1 where it is as large as that, or the product zero."""
        relative = self.error / self.size if self.size else 1.0
        return relative if relative < 1.0 else 1.0  # also where it is not a number


def search(
    product: Callable[[float], Vector],
    step: float,
    shortest: float,
    longest: float,
    *,
    tolerance: float,
    rounding: float,
    resolution: float,
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
        The relative error that ends the search. If all are larger, the least decides.
    rounding : float
        The norm of a gradient's last rounding.
    resolution : float
        The rounding of the parameters: what a step may be off by when it is added to them.
    significant : float
        A product that is lost in rounding will do where its error is below ``tolerance · significant``.
    """
    first = product(step)
    best: Difference | None = None
    shorter = _neighbours(product, first, step, 1 / _RATIO, shortest)
    longer = _neighbours(product, first, step, _RATIO, longest)
    noise, farthest, falls = rounding / 2, 0.0, False
    # Rounding ends the first walk early. If longer steps do not agree either, it was not rounding.
    for walk in (shorter, longer, shorter):
        lowest = best.relative if best else math.inf
        for pair in walk:
            lost = rounding > 0.0 and pair.difference <= _ROUNDINGS * rounding / pair.finer
            truncated = pair.truncated and not lost
            if walk is longer and truncated:
                break
            if lost:
                noise = max(noise, pair.difference * pair.finer)
            else:
                farthest = max(farthest, pair.difference)
            # The start is where the error should be least: its first neighbour only checks it.
            chosen, at = (pair.product, pair.step) if best or truncated else (first, step)
            # Two roundings may be equal by chance, above all where few numbers make up the gradient.
            floor = (noise + pair.size * resolution) / at
            found = Difference(chosen, at, max(pair.difference, floor), pair.size)
            if found.relative <= tolerance or (lost and found.error <= tolerance * significant):
                return found
            if best:
                best = replace(best, error=max(best.error, noise / best.step))
            if best is None or truncated or (found.relative, found.error) < (best.relative, best.error):
                best, falls = found, truncated
            lowest = min(lowest, found.relative)
            if lowest < _NEAR and found.relative > 4 * lowest and not (lost and walk is longer):
                break
            if walk is shorter and lost and (falls or best.product is first):
                break
        if best and (falls or (best.relative < _NEAR and best.product is not first)):
            break
    if best is None:
        return Difference(first, step, math.inf, norm(first))
    if best.relative > _AGREES:
        # Where no neighbours agree, the truth may be as large as any of them.
        return replace(best, error=max(best.error, farthest))
    return best


@dataclass(frozen=True, eq=False)
class _Pair:
    """The product at ``step``, and how it compares with that of the step before."""

    product: Vector
    step: float
    finer: float
    difference: float
    size: float
    truncated: bool
    """The finer step has less than half of the product: nothing but a truncation error falls like that."""


def _neighbours(
    product: Callable[[float], Vector], last: Vector, step: float, ratio: float, bound: float
) -> Iterator[_Pair]:
    while (step * ratio <= bound) if ratio > 1 else (step * ratio >= bound):
        current = product(step * ratio)
        before, now, difference = norm(last), norm(current), norm(last - current)
        if ratio > 1 and not math.isfinite(difference):
            return
        last, step = current, step * ratio
        finer, coarser = (now, before) if ratio < 1 else (before, now)
        yield _Pair(current, step, min(step, step / ratio), difference, max(before, now), 2 * finer < coarser)
