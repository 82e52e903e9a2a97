"""Why a solve failed and what to do about it, as the error to raise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.errors import (
    IndefiniteCurvature,
    NotConverged,
    NotSymmetric,
    NotSymmetricSystem,
    Singular,
    SolverError,
    Stagnated,
    Unaffordable,
)
from ihvp.operators.base import Shifted
from ihvp.operators.symmetry import check_symmetric
from ihvp.solution import Solution
from ihvp.solvers.forecast import Forecast, damping_for, duration, iterations_of_cg
from ihvp.solvers.ritz import RitzRange, ritz_range

# A damping is advised with which a solve takes about so many iterations, by the ends of the spectrum that so
# many Lanczos steps see.
_AFFORDABLE, _RITZ_STEPS = 300.0, 30


def failure(
    operator: Shifted,
    solution: Solution,
    reasons: NDArray[Any],
    v: Vector,
    *,
    rtol: float,
    limit: int,
    definite: bool,
    forecast: Forecast | None = None,
) -> SolverError | None:
    """The error for the first column of the block ``v`` that failed, the gravest reason first.

    Where a probe finds the matrix not symmetric, that is the reason.

    ``definite`` says whether the method needs a positive definite matrix; ``forecast``, why it was stopped.
    """
    for reason in ("singular", "stagnated", "unaffordable", "max_iterations"):
        failed = np.flatnonzero(reasons == reason)
        if failed.size:
            try:
                check_symmetric(operator.operator)
            except NotSymmetric as cause:
                return NotSymmetricSystem(f"The solve failed. {cause}", solution, cause.left, cause.right)
            column, x = (algebra.column(block, int(failed[0])) for block in (v, solution.x))
            if reason == "singular":
                return singular(operator, solution, rtol, column, x)
            # Without rounding P steps are enough for a definite matrix.
            if definite and (reason == "stagnated" or (forecast is None and limit >= operator.space.size)):
                ritz, space = ritz_range(operator.apply, column, _RITZ_STEPS), operator.space
                # In half precision products themselves may be what makes an eigenvalue zero.
                zero = 10 * space.eps if space.product_eps == space.eps else -space.product_eps
                if ritz.lowest <= zero * ritz.largest:
                    return _indefinite(operator, solution, min(ritz.lowest, 0.0), ritz, rtol)
            if reason == "stagnated":
                return stagnated(operator, solution, rtol, column, x)
            if forecast is not None:
                return unaffordable(operator, solution, rtol, forecast, column, x, definite)
            return not_converged(operator, solution, rtol, limit, column, x, definite)
    return None


def indefinite(operator: Shifted, solution: Solution, direction: Vector, rtol: float) -> IndefiniteCurvature:
    """The error for a direction with ``pᵀ(A + λI)p ≤ 0``, with a damping that would do."""
    direction = direction / float(algebra.norms(direction))
    curvature = float(algebra.dots(direction, operator.apply(direction)))
    return _indefinite(operator, solution, min(curvature, 0.0), ritz_range(operator.apply, direction), rtol)


def indefinite_spectrum(
    operator: Shifted, solution: Solution, lowest: float, highest: float
) -> IndefiniteCurvature:
    """The error for a matrix ``A + λI`` whose extreme eigenvalues are known."""
    damping = sufficient_damping(operator, RitzRange(lowest, 0.0, highest, 0.0))
    return IndefiniteCurvature(
        f"The matrix is not positive definite: with damping {operator.shift:g} its eigenvalues reach from "
        f"{lowest:.3e} to {highest:.3e}. Add damping: {damping:.3e} makes it positive definite. Or ask for "
        "the exact solution as it is: on_indefinite='solve'.",
        solution,
        lowest,
        damping,
    )


def singular(operator: Shifted, solution: Solution, rtol: float, v: Vector, x: Vector) -> Singular:
    """The error for a column ``v`` with a part that no x reaches; what ``x`` leaves of it is that part."""
    rest = algebra.subtract_from(v, operator.apply(x))
    size = float(algebra.norms(rest))
    return Singular(
        f"The matrix is singular with damping {operator.shift:g}: a part of v of relative size "
        f"{size / float(algebra.norms(v)):.1e}, above the tolerance {rtol:.1e}, lies outside its range (the "
        f"matrix takes a unit vector along it to one of size {_image(operator, rest):.1e}). Add damping, or "
        "take that part out of v.",
        solution,
    )


def _image(operator: Shifted, direction: Vector) -> float:
    """``‖A u‖`` for the unit vector u along ``direction``, an upper bound of the smallest singular value."""
    return float(algebra.norms(operator.apply(direction / float(algebra.norms(direction)))))


def sufficient_damping(operator: Shifted, ritz: RitzRange) -> float:
    """A total damping that makes the matrix positive definite as far as a Ritz range tells."""
    # The true lowest eigenvalue may lie below the Ritz value by its error bound; a tenth is for what the
    # Krylov space has not seen, and the last term keeps the damped matrix away from singular.
    missing = (
        1.1 * max(-ritz.lowest, 0.0)
        + ritz.lowest_error
        + (operator.space.product_eps**0.5 * ritz.largest or 1.0)
    )
    return operator.shift + missing


def _indefinite(
    operator: Shifted, solution: Solution, curvature: float, ritz: RitzRange, rtol: float
) -> IndefiniteCurvature:
    damping = sufficient_damping(operator, ritz)
    iterations = iterations_of_cg(ritz, rtol, damping - operator.shift)
    takes = f", with about {_rounded(iterations)} products" if math.isfinite(iterations) else ""
    found = "zero" if curvature == 0 else "negative"
    return IndefiniteCurvature(
        f"The matrix is not positive definite: {found} curvature {curvature:.3e} along a search direction, "
        f"with damping {operator.shift:g}; a few Lanczos steps reach down to {ritz.lowest:.3e} and up to "
        f"{ritz.highest:.3e}. Add damping: {damping:.3e} or more makes it positive definite as far as these "
        f"steps can see{takes}.",
        solution,
        curvature,
        damping,
    )


def stagnated(operator: Shifted, solution: Solution, rtol: float, v: Vector, x: Vector) -> Stagnated:
    """The error for the true residual of the column ``v`` that no longer falls."""
    reached = float(np.max(solution.residual))
    noise = operator.product_error(x) / float(algebra.norms(v))
    if operator.space.product_eps > operator.space.eps:
        uncertain = float(np.max(solution.noise))
        cause = (
            f"products of parameters in half precision carry a noise of about {uncertain:.1e} relative to v"
        )
        remedy = "parameters in float32"
    elif noise:
        cause = f"the backend's products carry an error of about {noise:.1e} relative to v (its noise floor)"
        remedy = "a backend with exact products"
    else:
        cause = f"rounding in {operator.dtype} allows no smaller one for this matrix"
        remedy = "a wider dtype"
    ask = f"Ask for rtol ≥ {2 * reached:.0e}, add" if 2 * reached < 1 else "Add"
    return Stagnated(
        f"The recomputed residual stays at {reached:.1e}, above the tolerance {rtol:.1e}: {cause}. {ask} "
        f"damping, or use {remedy}.",
        solution,
    )


def unaffordable(
    operator: Shifted,
    solution: Solution,
    rtol: float,
    forecast: Forecast,
    v: Vector,
    x: Vector,
    definite: bool,
) -> SolverError:
    """The error for a solve that was stopped because its forecast exceeds the budget."""
    rest = algebra.subtract_from(v, operator.apply(x))
    ritz = ritz_range(operator.apply, rest if float(algebra.norms(rest)) else v, _RITZ_STEPS)
    if definite and ritz.lowest < -(operator.space.unsure * abs(ritz.highest) + ritz.lowest_error):
        return _indefinite(operator, solution, ritz.lowest, ritz, rtol)
    added = damping_for(ritz, rtol, _AFFORDABLE)
    damping, few = operator.shift + added, iterations_of_cg(ritz, rtol, added)
    products = forecast.iterations * forecast.columns
    takes = (
        f"about {_rounded(products)} products, {duration(forecast.seconds)}"
        if math.isfinite(products)
        else "more products than can be told, for it does not fall yet"
    )
    return Unaffordable(
        f"The residual is {float(np.max(solution.residual)):.1e} after {solution.iterations} iterations; at "
        f"this pace the tolerance {rtol:.1e} takes {takes}. With damping {damping:.1e} it takes about "
        f"{_rounded(few)} iterations. Or loosen rtol, pass a preconditioner, or pass max_iterations, which "
        "is obeyed without a forecast.",
        solution,
        products,
        forecast.seconds,
        damping,
    )


def _rounded(count: float) -> str:
    """A number of products to two digits."""
    digits = max(int(math.log10(max(count, 1))) - 1, 0)
    return f"{round(count / 10**digits) * 10**digits:,}"


def not_converged(
    operator: Shifted, solution: Solution, rtol: float, limit: int, v: Vector, x: Vector, definite: bool
) -> SolverError:
    """The error for a reached iteration limit; ``definite`` says that an indefinite matrix may explain it."""
    ritz = ritz_range(operator.apply, v)
    highest = max(abs(ritz.highest), abs(ritz.lowest))
    if definite and ritz.lowest < -(operator.space.unsure * highest + ritz.lowest_error):
        return _indefinite(operator, solution, ritz.lowest, ritz, rtol)
    # What is left of v lies where the matrix is small, and Ritz values lie within the spectrum.
    lowest = _image(operator, algebra.subtract_from(v, operator.apply(x)))
    lowest = min(lowest, ritz.lowest) if ritz.lowest > 0 else lowest
    condition = f" The condition number is at least {highest / lowest:.0e}." if 0 < lowest < highest else ""
    return NotConverged(
        f"{limit} iterations brought the residual to {float(np.max(solution.residual)):.1e}, above the "
        f"tolerance {rtol:.1e}.{condition} Raise max_iterations, loosen rtol, add damping or pass a "
        "preconditioner.",
        solution,
    )
