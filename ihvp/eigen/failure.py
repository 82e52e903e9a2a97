"""What to say of eigenpairs that have not converged."""

from __future__ import annotations

import numpy as np

from ihvp import algebra
from ihvp.eigenpairs import Eigenpairs
from ihvp.errors import EigenpairsNotConverged
from ihvp.operators.base import LinearOperator


def failure(
    operator: LinearOperator,
    pairs: Eigenpairs,
    *,
    tol: float,
    size: float,
    max_restarts: int,
    complete: bool,
    confidence: float | None,
) -> EigenpairsNotConverged:
    """The error for pairs of which some have not converged.

    ``tol`` relates to ``size``, the largest magnitude of an eigenvalue; ``complete`` says that the method was
    not stopped by its limit.
    """
    missing = np.flatnonzero(~pairs.converged)
    worst = int(missing[np.argmax(pairs.residuals[missing])])
    reached = float(pairs.residuals[worst]) / size if size else np.inf
    count = f"{missing.size} of {pairs.values.size} eigenpairs have not converged: "
    spent = f"after {max_restarts} restarts and {pairs.matvecs} products"
    if not complete and reached <= tol:
        return EigenpairsNotConverged(
            f"{count}they are eigenpairs, with residuals within the tolerance {tol:.1e}, but {spent} it is "
            f"not certain, with confidence {confidence}, that no other eigenvalue belongs in their place, "
            f"such as a copy of a multiple one, or one further out by more than {tol * size:.1e}. Raise "
            "max_restarts or ncv, loosen tol, ask for fewer pairs, or pass confidence=None to do without "
            "this proof.",
            pairs,
        )
    found = f"{count}residuals of up to {reached:.1e} of the largest |θ|, above the tolerance {tol:.1e}, "
    if not complete:
        return EigenpairsNotConverged(
            f"{found}{spent}. Raise max_restarts or ncv, loosen tol, or ask for fewer pairs.", pairs
        )
    noise = operator.product_error(algebra.column(pairs.vectors, worst))
    if noise:
        cause = f"the backend's products carry an error of about {noise / size:.1e} (their noise floor)"
        advice = "or use a backend with exact products"
    else:
        cause = f"rounding in {operator.dtype}, or products that differ between calls or are not symmetric"
        advice = "use a wider dtype, or test the operator with check=True"
    return EigenpairsNotConverged(
        f"{found}by fresh products, though the method saw smaller ones: {cause}. Ask for tol ≥ "
        f"{2 * reached:.0e}, {advice}.",
        pairs,
    )
