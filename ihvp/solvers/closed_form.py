"""Solving with operators that know their own inverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.errors import InvalidOption
from ihvp.operators.base import LinearOperator, Shifted
from ihvp.progress import Monitor
from ihvp.solution import Solution
from ihvp.solvers.base import Solver
from ihvp.solvers.refinement import Refinement
from ihvp.solvers.tolerances import check_tolerances


@runtime_checkable
class SupportsClosedForm(Protocol):
    """An operator A that solves with ``A + λI`` without iterations."""

    def solve_damped(self, v: Vector, damping: float, /) -> Vector:
        """``(A + λI)⁻¹ v`` of a flat native vector or block; by the pseudo-inverse where that is singular."""

    def is_singular(self, damping: float, /) -> bool:
        """Whether ``A + λI`` has an eigenvalue that is zero up to rounding."""


@dataclass(frozen=True, kw_only=True)
class ClosedForm(Solver):
    """The operator's own solution, certified by the operator's own product.

    What :func:`~ihvp.solve` takes for the operators that :class:`SupportsClosedForm` describes, such as
    :class:`~ihvp.LowRank`, unless another solver is asked for. Exact also for indefinite matrices.

    Parameters
    ----------
    rtol : float, optional
        A column is solved when ``‖v − (A + λI) x‖ ≤ max(rtol ‖v‖, atol)``. By default the square root of the
        dtype's machine epsilon: 1.5e-8 in float64, 3.5e-4 in float32.
    atol : float

    Raises
    ------
    InvalidOption
        A tolerance is out of range; when the operator is known, it has no closed form.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> F = ihvp.FullRank.of([4.0, 3.0], np.eye(3, 2), tail=2.0)
    >>> ihvp.solve(F, np.ones(3), solver=ihvp.ClosedForm()).x.round(6)
    array([0.25    , 0.333333, 0.5     ])
    """

    rtol: float | None = None
    atol: float = 0.0

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol, None)

    def prepare(self, operator: LinearOperator, damping: float) -> Shifted:
        if not isinstance(operator, SupportsClosedForm):
            raise InvalidOption(
                "operator", operator, "one with a closed form, such as ihvp.LowRank; use ihvp.CG for others"
            )
        return Shifted(operator, damping)

    def apply(self, prepared: Shifted, v: Vector, *, x0: Vector | None, monitor: Monitor) -> Solution:
        operator, damping = prepared.operator, prepared.shift
        assert isinstance(operator, SupportsClosedForm)  # prepare() has seen to it
        rtol = prepared.space.eps**0.5 if self.rtol is None else self.rtol
        reason = "singular" if operator.is_singular(damping) else "reached"
        course = Refinement(prepared, v, rtol=rtol, atol=self.atol, x0=x0, monitor=monitor)
        while course.pending.size:
            numbers, (x, r) = course.pending, course.take()
            x = algebra.axpy(x, 1.0, operator.solve_damped(r, damping))
            del r
            reasons = np.full(numbers.shape, reason, dtype=object)
            course.log.step(numbers, course.check(x, reasons))
        solution = course.solution()
        course.raise_failure(solution, course.log.iterations, definite=False)
        return solution
