"""Which matrix stands for the curvature where nobody has chosen one, and which would where a solve fails."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ihvp.backend import SupportsGaussNewton
from ihvp.errors import IndefiniteCurvature, Unaffordable
from ihvp.influence.caller import level_outside
from ihvp.objective import Objective
from ihvp.operators import GaussNewton, Hessian
from ihvp.solvers.ritz import ritz_range
from ihvp.solvers.solve import Inverse

# Gauss–Newton matrices have zeros, but nothing below: this part of what an indefinite Hessian needs will do.
_PART = 1e-2


class IndefiniteHessian(UserWarning):
    """The Hessian has negative curvature: influence is that of the Gauss–Newton matrix in its place.

    Examples
    --------
    >>> import warnings
    >>> import ihvp
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", ihvp.influence.IndefiniteHessian)  # for those who want to decide
    """


def definite_inverse(objective: Objective, inverse: Inverse) -> Inverse:
    """The inverse of the Hessian, or that of the Gauss–Newton matrix where some Lanczos steps show the need.

    A Ritz value is never below the smallest eigenvalue: a negative one proves that there are saddles to fall
    from. The Gauss–Newton matrix leaves out the term that makes them, which vanishes with the residuals
    (Martens, "New insights and perspectives on the natural gradient method", JMLR 21, 2020, section 8).
    """
    if objective.predict is None or not isinstance(objective.backend, SupportsGaussNewton):
        return inverse
    space = objective.space
    start = space.asarray(np.random.default_rng(0).standard_normal(space.size))
    # The operator that is solved with later: what it linearises for these products, it keeps.
    ritz = ritz_range(inverse.operator.apply, start)
    if not ritz.lowest + inverse.damping < -(space.product_eps**0.5) * ritz.highest:
        return inverse
    damping = max(inverse.damping, _PART * -ritz.lowest)
    warnings.warn(
        f"The Hessian has curvature of {ritz.lowest:.2g}, which a damping of {inverse.damping:.2g} does not "
        "make positive: influence is that of the Gauss–Newton matrix in its place, with a damping of "
        f"{damping:.2g}. Choose by damping=… with curvature=ihvp.GaussNewton(objective), or, above "
        f"{-ritz.lowest:.2g}, with curvature=ihvp.Hessian(objective).",
        IndefiniteHessian,
        stacklevel=level_outside(),
    )
    return Inverse(GaussNewton(objective), damping, inverse.solver)


@contextmanager
def advising(objective: Objective, inverse: Inverse) -> Iterator[None]:
    """Adds a call that works to the text of a solve that met indefinite curvature, or would take too long."""
    try:
        yield
    except (IndefiniteCurvature, Unaffordable) as error:
        calls = f"ihvp.Influence(objective, damping={error.suggested_damping:.2g})"
        if isinstance(inverse.operator, Hessian) and isinstance(objective.backend, SupportsGaussNewton):
            damping = max(inverse.damping, _PART * error.suggested_damping)
            known = "" if objective.predict else " with an objective that has predict=…"
            calls += (
                f"; or ihvp.Influence(objective, damping={damping:.1g}, "
                f"curvature=ihvp.GaussNewton(objective)){known}, whose curvature is never negative where the "
                "loss is convex in the outputs"
            )
        error.args = (f"{error.args[0]} For influence: {calls}.",)
        raise
