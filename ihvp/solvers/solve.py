"""Solving with a curvature matrix: one call for one system, an operator for many."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.errors import InvalidOption, SolverError, VectorError
from ihvp.operators.base import LinearOperator
from ihvp.progress import Monitor, Step
from ihvp.solvers.base import Solution, Solver
from ihvp.solvers.cg import CG


def solve(
    operator: LinearOperator,
    v: Any,
    damping: float = 0.0,
    solver: Solver | None = None,
    *,
    x0: Any = None,
    on_failure: Literal["raise", "return"] = "raise",
    callback: Callable[[Step], object] | None = None,
    progress: bool | None = None,
) -> Solution:
    r"""Solve :math:`(A + \lambda I)\, x = v`, with a certificate.

    Parameters
    ----------
    operator : LinearOperator
        A.
    v
        One right-hand side or a block of them, in any form that the operator multiplies.
    damping : float
        λ ≥ 0.
    solver : Solver, optional
        The method and its hyper-parameters; by default :class:`~ihvp.CG`.
    x0 : optional
        A first guess, in a form of ``v``'s shape.
    on_failure : {"raise", "return"}
        Whether a solve that misses its tolerance is an error, or a Solution with ``converged=False``.
    callback : callable, optional
        Called with a :class:`~ihvp.progress.Step` after each iteration.
    progress : bool, optional
        Shows a progress bar; by default in a terminal, after a second.

    Returns
    -------
    Solution
        ``.x`` in the form of ``v``, and the recomputed residual.

    Raises
    ------
    SolverError
        A subclass names the cause; ``.solution`` holds what was computed.
    VectorError, InvalidOption

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> solution = ihvp.solve(ihvp.Dense(np.diag([1.0, 3.0])), np.array([2.0, 2.0]), damping=1.0)
    >>> solution.x, solution.converged
    (array([1. , 0.5]), True)
    """
    if on_failure not in ("raise", "return"):
        raise InvalidOption("on_failure", on_failure, "'raise' or 'return'")
    solver = CG() if solver is None else solver
    damping = _checked_damping(damping)
    flat, leave = operator.space.enter(v)
    if not algebra.all_finite(flat):
        raise VectorError("v holds NaN or infinite entries; expected finite ones.")
    start = None
    if x0 is not None:
        start, _ = operator.space.enter(x0)
        if start.shape != flat.shape:
            raise VectorError(f"x0 has shape {start.shape}; expected {flat.shape}, that of v.")
        if not algebra.all_finite(start):
            raise VectorError("x0 holds NaN or infinite entries; expected finite ones.")
    prepared = solver.prepare(operator, damping)
    with Monitor(type(solver).__name__, callback, progress) as monitor:
        try:
            solution = solver.apply(prepared, flat, x0=start, monitor=monitor)
        except SolverError as error:
            error.solution = dataclasses.replace(error.solution, x=leave(error.solution.x))
            if on_failure == "return":
                return error.solution
            raise
    return dataclasses.replace(solution, x=leave(solution.x))


def inverse(operator: LinearOperator, damping: float = 0.0, solver: Solver | None = None) -> Inverse:
    r"""The operator :math:`(A + \lambda I)^{-1}`, each of whose products is a certified solve.

    What depends on A and λ alone (a factorisation, a preconditioner) is made once.

    Parameters
    ----------
    operator : LinearOperator
        A.
    damping : float
        λ ≥ 0.
    solver : Solver, optional
        By default :class:`~ihvp.CG`.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> inverse = ihvp.inverse(ihvp.Dense(np.diag([1.0, 3.0])), damping=1.0)
    >>> inverse @ np.array([2.0, 2.0])
    array([1. , 0.5])
    """
    return Inverse(operator, damping, CG() if solver is None else solver)


class Inverse(LinearOperator):
    """``(A + λI)⁻¹``; made by :func:`inverse`. A product that misses its tolerance raises ``SolverError``."""

    def __init__(self, operator: LinearOperator, damping: float, solver: Solver) -> None:
        super().__init__(operator.space)
        self.operator, self.damping, self.solver = operator, _checked_damping(damping), solver
        self._prepared = solver.prepare(operator, self.damping)

    def apply(self, v: Vector) -> Vector:
        with Monitor(type(self.solver).__name__) as monitor:
            return self.solver.apply(self._prepared, v, x0=None, monitor=monitor).x


def _checked_damping(damping: float) -> float:
    if not (
        isinstance(damping, (int, float, np.integer, np.floating)) and np.isfinite(damping) and damping >= 0
    ):
        raise InvalidOption("damping", damping, "a finite number ≥ 0, which is added to the diagonal")
    return float(damping)
