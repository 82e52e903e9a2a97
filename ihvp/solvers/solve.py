"""Solving with a curvature matrix: one call for one system, an operator for many."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.arguments import check_choice, check_damping, check_flag, check_function
from ihvp.backend import Vector
from ihvp.errors import InvalidOption, SolverError, VectorError
from ihvp.operators.base import LinearOperator, check_operator
from ihvp.operators.symmetry import check_symmetric
from ihvp.progress import Monitor, Step
from ihvp.solution import Solution
from ihvp.solvers.auto import Auto
from ihvp.solvers.base import Solver
from ihvp.solvers.cg import CG
from ihvp.solvers.closed_form import ClosedForm, SupportsClosedForm


@overload
def solve(
    operator: LinearOperator,
    v: Any,
    damping: float = 0.0,
    solver: Solver | Literal["auto"] | None = None,
    *,
    x0: Any = None,
    check: bool = False,
    on_failure: Literal["raise", "return"] = "raise",
    callback: Callable[[Step], object] | None = None,
    progress: bool | None = None,
) -> Solution: ...
@overload
def solve(
    operator: LinearOperator,
    v: Any,
    damping: Sequence[float] | NDArray[np.floating],
    solver: Solver | Literal["auto"] | None = None,
    *,
    x0: Any = None,
    check: bool = False,
    on_failure: Literal["raise", "return"] = "raise",
    callback: Callable[[Step], object] | None = None,
    progress: bool | None = None,
) -> list[Solution]: ...
@np.errstate(all="ignore")  # what leaves the range of numbers is named where it matters
def solve(
    operator: LinearOperator,
    v: Any,
    damping: float | Sequence[float] | NDArray[np.floating] = 0.0,
    solver: Solver | Literal["auto"] | None = None,
    *,
    x0: Any = None,
    check: bool = False,
    on_failure: Literal["raise", "return"] = "raise",
    callback: Callable[[Step], object] | None = None,
    progress: bool | None = None,
) -> Solution | list[Solution]:
    r"""Solve :math:`(A + \lambda I)\, x = v`, with a certificate.

    Parameters
    ----------
    operator : LinearOperator
        A.
    v
        One right-hand side or a block of them, in any form that the operator multiplies.
    damping : float or sequence of float
        λ ≥ 0. Several are solved for the price of the hardest one by CG, and with one matrix by Direct.
    solver : Solver or "auto", optional
        The method and its hyper-parameters; by default :class:`~ihvp.CG`, or the operator's own closed form.
        ``"auto"`` is :class:`~ihvp.Auto`, which chooses.
    x0 : optional
        A first guess, in a form of ``v``'s shape.
    check : bool
        Whether to compare ``uᵀ(Av)`` with ``vᵀ(Au)`` for random u and v first, which takes two products.
    on_failure : {"raise", "return"}
        Whether a solve that misses its tolerance is an error, or a Solution with ``converged=False``.
    callback : callable, optional
        Called with a :class:`~ihvp.progress.Step` after each iteration.
    progress : bool, optional
        Shows a progress bar; by default in a terminal, after a second.

    Returns
    -------
    Solution, or a list of one for each damping, in order
        ``.x`` in the form of ``v``, and the recomputed residual.

    Raises
    ------
    SolverError
        A subclass names the cause; ``.solution`` holds what was computed. Of several dampings, that of the
        first one that failed.
    NotSymmetric
        The probe that ``check`` asks for found the operator not symmetric.
    VectorError, InvalidOption

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> solution = ihvp.solve(ihvp.Dense(np.diag([1.0, 3.0])), np.array([2.0, 2.0]), damping=1.0)
    >>> solution.x, solution.converged
    (array([1. , 0.5]), True)

    Several dampings:

    >>> path = ihvp.solve(ihvp.Dense(np.diag([1.0, 3.0])), np.array([2.0, 2.0]), damping=[1.0, 3.0])
    >>> [solution.x.round(3).tolist() for solution in path]
    [[1.0, 0.5], [0.5, 0.333]]
    """
    solver = _checked(operator, solver)
    check_choice("on_failure", on_failure, ("raise", "return"))
    check_flag("check", check)
    check_function("callback", callback, "a function of an ihvp.progress.Step, or None", takes=1)
    several, dampings = _checked_dampings(operator, damping)
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
    operator.verify()
    if check:
        check_symmetric(operator)
    with Monitor(type(solver).__name__, callback, progress, operator.space.processes.rank) as monitor:
        if several:
            outcomes = solver.apply_shifted(operator, dampings, flat, x0=start, monitor=monitor)
        else:
            prepared = solver.prepare(operator, dampings[0])
            outcomes = [solver.attempt(prepared, flat, x0=start, monitor=monitor)]
    solutions = []
    for value, outcome in zip(dampings, outcomes, strict=True):
        error = outcome if isinstance(outcome, SolverError) else None
        solution = outcome.solution if isinstance(outcome, SolverError) else outcome
        method = solution.method or type(solver).__name__
        solution = dataclasses.replace(solution, x=leave(solution.x), method=method)
        if error is not None and on_failure == "raise":
            error.solution = solution
            if several:
                error.add_note(f"This is damping {value:g} of {dampings}.")
            raise error
        solutions.append(solution)
    return solutions if several else solutions[0]


def inverse(
    operator: LinearOperator, damping: float = 0.0, solver: Solver | Literal["auto"] | None = None
) -> Inverse:
    r"""The operator :math:`(A + \lambda I)^{-1}`, each of whose products is a certified solve.

    What depends on A and λ alone (a factorisation, a preconditioner) is made once.

    Parameters
    ----------
    operator : LinearOperator
        A.
    damping : float
        λ ≥ 0.
    solver : Solver or "auto", optional
        By default as for :func:`solve`.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> inverse = ihvp.inverse(ihvp.Dense(np.diag([1.0, 3.0])), damping=1.0)
    >>> inverse @ np.array([2.0, 2.0])
    array([1. , 0.5])
    """
    return Inverse(operator, damping, _checked(operator, solver))


class Inverse(LinearOperator):
    """``(A + λI)⁻¹``; made by :func:`inverse`. A product that misses its tolerance raises ``SolverError``.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> inverse = ihvp.inverse(ihvp.Dense(np.diag([1.0, 3.0])), damping=1.0)
    >>> inverse.solve(np.array([2.0, 2.0])).residual < 1e-5
    True
    """

    @np.errstate(all="ignore")
    def __init__(self, operator: LinearOperator, damping: float, solver: Solver) -> None:
        super().__init__(operator.space)
        self.operator, self.damping, self.solver = operator, _checked_damping(operator, damping), solver
        self._prepared = solver.prepare(operator, self.damping)
        # What was prepared may learn from each solve.
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Inverse, (self.operator, self.damping, self.solver)

    def apply(self, v: Vector) -> Vector:
        return self.solve(v).x

    @np.errstate(all="ignore")
    def solve(self, v: Vector, *, progress: bool | None = None) -> Solution:
        """A product with its certificate, for a flat native vector or block.

        Parameters
        ----------
        v : Vector
        progress : bool, optional
            As for :func:`solve`.
        """
        self.operator.verify()
        rank = self.space.processes.rank
        with self._lock, Monitor(type(self.solver).__name__, progress=progress, rank=rank) as monitor:
            return self.solver.apply(self._prepared, v, x0=None, monitor=monitor)


def _checked(operator: Any, solver: Any) -> Solver:
    check_operator(operator)
    if solver is None:
        return ClosedForm() if isinstance(operator, SupportsClosedForm) else CG()
    if isinstance(solver, str) and solver == "auto":
        return Auto()
    if not isinstance(solver, Solver):
        raise InvalidOption(
            "solver", solver, "a solver with its options, such as ihvp.CG(rtol=1e-5), or 'auto'"
        )
    return solver


def _checked_dampings(operator: LinearOperator, damping: Any) -> tuple[bool, list[float]]:
    try:
        several = np.ndim(damping) == 1
        values = np.atleast_1d(np.asarray(damping, dtype=object))
    except Exception as error:  # lists of unequal lengths, and tensors that numpy cannot read
        raise InvalidOption("damping", damping, "one number, or a list of numbers") from error
    dampings = [_checked_damping(operator, value) for value in values]
    if not dampings:
        raise InvalidOption("damping", damping, "at least one number")
    return several, dampings


def _checked_damping(operator: LinearOperator, damping: Any) -> float:
    check_damping(damping)
    most = float(operator.space.xp.finfo(operator.space.dtype).max)
    if damping > most:
        raise InvalidOption("damping", damping, f"at most {most:.1e}, the largest number of {operator.dtype}")
    return float(damping)
