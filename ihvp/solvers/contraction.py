"""When ``I − A / scale`` contracts, and why a recursion with it grew or came to no end."""

from __future__ import annotations

from collections.abc import Iterable

from ihvp import algebra
from ihvp.backend import Matvec, Vector
from ihvp.errors import Diverged, IndefiniteCurvature, NonFinite
from ihvp.operators.base import Shifted
from ihvp.solution import Solution
from ihvp.solvers.base import CountedOperator
from ihvp.solvers.diagnosis import sufficient_damping
from ihvp.solvers.ritz import RitzRange, ritz_range

# I − A/scale contracts down to half the largest eigenvalue. Aiming at the whole of it leaves a factor of two:
# for Ritz values, which lie below, and for batches of larger curvature than those that were looked at. The
# tenth is for more of the same.
_MARGIN = 1.1


def contracting_scale(matrices: Iterable[CountedOperator], start: Vector, steps: int = 10) -> float:
    """A scale for which ``I − M / scale`` contracts for each of some definite matrices M.

    The largest magnitude of an eigenvalue by a few Lanczos steps, times 1.1; 0 if all matrices are zero.

    A random recursion keeps its mean square bounded where ``E[M²] ≤ 2 scale E[M]``, for which ``‖M‖ ≤ 2
    scale`` in all batches suffices; the largest eigenvalue of the expectation, which is smaller, does not
    (Bach and Moulines, "Non-strongly-convex smooth stochastic approximation with convergence rate O(1/n)",
    2013). ``start`` is any vector but zero, and ``steps`` the most products to spend on each matrix.
    """
    ranges = [ritz_range(_checked(matrix), start, steps) for matrix in matrices]
    return _MARGIN * max(ritz.largest for ritz in ranges)


def spectrum(operator: CountedOperator, start: Vector) -> RitzRange:
    """The extreme Ritz values from ``start``, which ought to hold the direction that does harm."""
    return ritz_range(_checked(operator), start)


def is_indefinite(operator: Shifted, ritz: RitzRange, start: Vector) -> bool:
    """Whether the lowest Ritz value proves a negative eigenvalue, beyond rounding and noisy products."""
    noise = operator.product_error(start / float(algebra.norms(start)))
    return ritz.lowest < -(operator.space.unsure * ritz.largest + noise)


def larger_scale(ritz: RitzRange) -> float:
    """A scale that contracts for the eigenvalues that a Ritz range bounds."""
    return _MARGIN * (ritz.largest + ritz.highest_error)


def diverged(solution: Solution, scale: float, suggested: float) -> Diverged:
    """The error for a scale below half the largest curvature."""
    return Diverged(
        f"The recursion diverges: it grew within {solution.iterations} steps. With scale {scale:g} it "
        f"contracts where all curvature, damping included and batch by batch, is between 0 and {2 * scale:g};"
        f" a few Lanczos steps ask for a scale of {suggested:.4g}. Pass scale={suggested:.4g}, scale='auto' "
        "or on_divergence='rescale'.",
        solution,
        suggested,
    )


def no_series(solution: Solution, operator: Shifted, ritz: RitzRange) -> IndefiniteCurvature:
    """The error for an eigenvalue that is not positive, of which no scale makes a contraction."""
    suggested = sufficient_damping(operator, ritz)
    return IndefiniteCurvature(
        f"The matrix is not positive definite: with damping {operator.shift:g} a few Lanczos steps reach "
        f"down to {ritz.lowest:.3e} and up to {ritz.highest:.3e}. The recursion sums the series of "
        "(I − A/scale)^j, which no scale makes converge for an eigenvalue that is not positive. Add damping: "
        f"{suggested:.3e} or more makes it converge as far as these steps can see.",
        solution,
        ritz.lowest,
        suggested,
    )


def _checked(operator: CountedOperator) -> Matvec:
    def product(v: Vector) -> Vector:
        result = operator.apply(v)
        if not algebra.all_finite(result):
            raise NonFinite("A product with the operator")
        return result

    return product
