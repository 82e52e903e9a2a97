"""Newton's method to the optimum of a convex objective, with this library's own products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp.algebra import to_numpy
from ihvp.errors import IhvpError
from ihvp.objective import Objective
from ihvp.operators import Hessian
from ihvp.solvers import CG, solve

# A step solved to a hundredth takes two digits off the gradient near the optimum.
_STEP_RTOL = 1e-2
_MAX_STEPS = 50
_MAX_HALVINGS = 20


@dataclass(frozen=True)
class Optimum:
    """Where the gradient vanishes."""

    weights: NDArray[Any]  # (P,)
    gradient_norm: float
    steps: int  # Newton steps taken


def minimise(
    objective_at: Callable[[NDArray[Any]], Objective], start: NDArray[Any], tolerance: float
) -> Optimum:
    """Minimise a strictly convex function of weights ``(P,)`` until its gradient is no longer than that.

    An IhvpError says that the gradient stopped falling above the tolerance.
    """
    weights, objective = start, objective_at(start)
    gradient = to_numpy(objective.gradient())
    for steps in range(_MAX_STEPS):
        norm = float(np.linalg.norm(gradient))
        if norm <= tolerance:
            return Optimum(weights, norm, steps)
        step = solve(Hessian(objective), gradient, solver=CG(rtol=_STEP_RTOL), progress=False).x
        # A Newton step shortens the gradient, if it is short enough: ∇‖g‖²/2 · (−H⁻¹g) = −‖g‖² < 0.
        for halvings in range(_MAX_HALVINGS):
            trial = weights - 0.5**halvings * step
            objective = objective_at(trial)
            gradient = to_numpy(objective.gradient())
            if np.linalg.norm(gradient) < norm:
                break
        else:
            break
        weights = trial
    raise IhvpError(
        f"Training stopped at a gradient of length {norm:.1e}; expected {tolerance:.0e} or less. "
        "The backend's gradients may be too coarse: try float64, or another backend."
    )
