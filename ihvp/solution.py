"""The answer to a linear system, with its certificate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Solution:
    """The answer to ``(A + λI) x = v``, with its certificate.

    Attributes
    ----------
    x
        The solution, in the form of ``v``.
    converged : bool
        Whether the recomputed residual of every column is within the tolerance, and the matrix what the
        method takes.
    residual : float or ndarray (k,)
        ``‖v − (A + λI) x‖ / ‖v‖``, recomputed with a fresh product; 0 for ``v = 0``. One number a column for
        a block.
    iterations : int
        Steps of the method; for a block, those of the slowest column.
    matvecs : int
        Products with single vectors, the fresh ones for the certificate included. What several dampings
        share is counted with the smallest of them.
    stop_reason : str
        Why the method stopped.
    method : str
        The method, and why it was taken where that was not the caller's choice.
    history : ndarray (iterations + 1,) or (iterations + 1, k)
        The relative residual before the first and after each step, by the method's own recurrence.
    noise : float or ndarray (k,)
        The part of ``residual`` that is the uncertainty of its products: what rounding, in half precision
        that of the parameters, and the backend's own error may hide. A bound; measured where it matters.
    standard_error : float or ndarray (k,), optional
        Of a method that draws samples: how far ``x`` is likely to be from its expectation, relative to
        ``‖x‖``. It is the root of the summed squared standard errors of the entries times Student's factor
        for 95 %, which allows for the few estimates that the spread is known from.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> solution = ihvp.solve(ihvp.Dense(np.diag([1.0, 2.0, 4.0])), np.ones(3))
    >>> solution.x.round(6), solution.iterations, solution.residual < 1e-5, solution.stop_reason
    (array([1.  , 0.5 , 0.25]), 3, True, 'converged')
    """

    x: Any
    converged: bool
    residual: float | NDArray[np.float64]
    iterations: int
    matvecs: int
    stop_reason: str
    history: NDArray[np.float64] = field(repr=False)
    noise: float | NDArray[np.float64] = 0.0
    standard_error: float | NDArray[np.float64] | None = None
    method: str = ""
