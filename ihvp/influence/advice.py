"""What to call instead, where influence cannot be solved for as it was asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ihvp.backend import SupportsGaussNewton
from ihvp.errors import IndefiniteCurvature, Unaffordable
from ihvp.objective import Objective
from ihvp.operators import Hessian
from ihvp.solvers.solve import Inverse

# Gauss–Newton matrices have zeros, but nothing below: this part of what an indefinite Hessian needs will do.
PART = 1e-2


@contextmanager
def advising(objective: Objective, inverse: Inverse) -> Iterator[None]:
    """Adds a call that works to the text of a solve that met indefinite curvature, or would take too long."""
    try:
        yield
    except (IndefiniteCurvature, Unaffordable) as error:
        calls = f"ihvp.Influence(objective, damping={error.suggested_damping:.2g})"
        if isinstance(inverse.operator, Hessian) and isinstance(objective.backend, SupportsGaussNewton):
            damping = max(inverse.damping, PART * error.suggested_damping)
            known = "" if objective.predict else " with an objective that has predict=…"
            calls += (
                f"; or ihvp.Influence(objective, damping={damping:.1g}, "
                f"curvature=ihvp.GaussNewton(objective)){known}, whose curvature is never negative where the "
                "loss is convex in the outputs"
            )
        error.args = (f"{error.args[0]} For influence: {calls}.",)
        raise
