"""Why a solve failed and what to do about it, as the error to raise."""

from __future__ import annotations

import numpy as np

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.errors import IndefiniteCurvature, NotConverged, SolverError, Stagnated
from ihvp.operators.base import Shifted
from ihvp.solvers.base import Solution
from ihvp.solvers.ritz import RitzRange, ritz_range


def indefinite(operator: Shifted, solution: Solution, direction: Vector) -> IndefiniteCurvature:
    """The error for a direction with ``pᵀ(A + λI)p ≤ 0``, with a damping that would do."""
    direction = direction / float(algebra.norms(direction))
    curvature = float(algebra.dots(direction, operator.apply(direction)))
    ritz = ritz_range(operator.apply, direction)
    return _indefinite(operator, solution, min(curvature, 0.0), ritz)


def _indefinite(
    operator: Shifted, solution: Solution, curvature: float, ritz: RitzRange
) -> IndefiniteCurvature:
    highest = max(abs(ritz.highest), abs(ritz.lowest))
    # The true lowest eigenvalue may lie below the Ritz value by its error bound; a tenth is for what the
    # Krylov space has not seen, and the last term keeps the damped matrix away from singular.
    missing = 1.1 * max(-ritz.lowest, 0.0) + ritz.lowest_error + (operator.space.eps**0.5 * highest or 1.0)
    damping = operator.shift + missing
    found = "zero" if curvature == 0 else "negative"
    return IndefiniteCurvature(
        f"The matrix is not positive definite: {found} curvature {curvature:.3e} along a search direction, "
        f"with damping {operator.shift:g}; a few Lanczos steps reach down to {ritz.lowest:.3e} and up to "
        f"{ritz.highest:.3e}. Add damping: {damping:.3e} or more makes it positive definite as far as these "
        "steps can see.",
        solution,
        curvature,
        damping,
    )


def stagnated(operator: Shifted, solution: Solution, rtol: float, v: Vector, x: Vector) -> Stagnated:
    """The error for the true residual of the column ``v`` that no longer falls."""
    reached = float(np.max(solution.residual))
    noise = operator.product_error(x) / float(algebra.norms(v))
    if noise:
        cause = f"the backend's products carry an error of about {noise:.1e} relative to v (its noise floor)"
        remedy = "a backend with exact products"
    else:
        cause = f"rounding in {operator.dtype} allows no smaller one for this matrix"
        remedy = "a wider dtype"
    return Stagnated(
        f"The recomputed residual stays at {reached:.1e}, above the tolerance {rtol:.1e}: {cause}. Ask for "
        f"rtol ≥ {2 * reached:.0e}, add damping, or use {remedy}.",
        solution,
    )


def not_converged(
    operator: Shifted, solution: Solution, rtol: float, limit: int, start: Vector
) -> SolverError:
    """The error for a reached iteration limit; the cause may be an indefinite matrix after all."""
    ritz = ritz_range(operator.apply, start)
    highest = max(abs(ritz.highest), abs(ritz.lowest))
    if ritz.lowest < -(operator.space.eps * highest * 10 + ritz.lowest_error):
        return _indefinite(operator, solution, ritz.lowest, ritz)
    condition = (
        f" The condition number is at least {ritz.highest / ritz.lowest:.0e}." if ritz.lowest > 0 else ""
    )
    return NotConverged(
        f"{limit} iterations brought the residual to {float(np.max(solution.residual)):.1e}, above the "
        f"tolerance {rtol:.1e}.{condition} Raise max_iterations, loosen rtol, add damping or pass a "
        "preconditioner.",
        solution,
    )
