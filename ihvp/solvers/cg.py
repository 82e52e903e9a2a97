"""Conjugate gradients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, get_args

import numpy as np

from ihvp.arguments import check_choice, check_flag
from ihvp.backend import Vector
from ihvp.errors import InvalidOption, SolverError
from ihvp.kronecker import EKFAC, KFAC
from ihvp.objective import Objective
from ihvp.operators.base import LinearOperator, Shifted
from ihvp.progress import Monitor
from ihvp.solution import Solution
from ihvp.solvers import diagnosis
from ihvp.solvers.augmented import Augmented
from ihvp.solvers.base import CountedOperator, Solver
from ihvp.solvers.block_cg import BlockConjugate
from ihvp.solvers.conjugate import Conjugate
from ihvp.solvers.minres import MinimalResidual
from ihvp.solvers.multishift import Shift, shifted_iterates
from ihvp.solvers.nystrom import Nystrom, Sketch
from ihvp.solvers.refinement import Refinement
from ihvp.solvers.sweep import Start
from ihvp.solvers.tolerances import check_tolerances, iteration_limit

Preconditioner = LinearOperator | Callable[[Vector], Vector]
OnIndefinite = Literal["raise", "truncate", "minres"]


class Preconditioned(NamedTuple):
    """``A + λI``, and the preconditioner that was made for it, if any."""

    system: Shifted
    preconditioner: Preconditioner | None


@dataclass(frozen=True, kw_only=True)
class CG(Solver):
    r"""The method of conjugate gradients, for a positive definite :math:`A + \lambda I`.

    Minimises :math:`\frac12 x^T (A + \lambda I) x - v^T x` over growing Krylov spaces (Hestenes and Stiefel,
    Journal of Research of the National Bureau of Standards 49, 1952). The columns of a block share one Krylov
    space (O'Leary, Linear Algebra and its Applications 29, 1980), which takes a fraction of the products that
    they would take one by one; columns that converge leave it. A column counts as converged only by its
    residual recomputed from the definition; where rounding has parted that from the recurrence, the iteration
    goes on from the true one. Beside ``v`` it holds four vectors for each column (five with a
    preconditioner).

    Several dampings share one Krylov space, and so the products of the hardest one (Frommer and Maass, SIAM
    Journal on Scientific Computing 19, 1998), where there is neither a preconditioner nor ``x0``; it then
    holds three vectors and two for each damping.

    Parameters
    ----------
    rtol : float, optional
        A column is solved when ``‖v − (A + λI) x‖ ≤ max(rtol ‖v‖, atol)``. By default 1e-5; for parameters in
        half precision the square root of its machine epsilon: 0.03 in float16, 0.09 in bfloat16.
    atol : float
    max_iterations : int, optional
        By default ten times P, at least 100. 0 only certifies ``x0``.
    preconditioner : "nystrom", "kfac", "ekfac", Nystrom, LinearOperator or callable, optional
        One to be made from products that count as the solve's: ``"nystrom"`` is :class:`~ihvp.Nystrom` with
        its defaults. ``"kfac"`` and ``"ekfac"`` are the inverse of :class:`~ihvp.KFAC` and
        :class:`~ihvp.EKFAC` of the operator's objective, with the solve's damping; on fitted classifiers they
        took more products than none. Or an approximation of ``(A + λI)⁻¹``, symmetric and positive definite,
        on flat native vectors, blocks.
    shared : bool
        Whether the columns of a block share one Krylov space where that serves them all, or each has its own,
        as it has under several dampings and where ``on_indefinite`` treats columns one by one.
    on_indefinite : {"raise", "truncate", "minres"}
        What to do where ``pᵀ(A + λI)p ≤ 0``: raise :class:`~ihvp.errors.IndefiniteCurvature`, keep the
        iterate reached before that direction, not converged, as truncated Newton methods want it, or go on
        from that iterate with :class:`~ihvp.MINRES`.

    Raises
    ------
    InvalidOption
        An option is out of range, both tolerances are 0 without a limit of iterations, or the preconditioner
        proves not positive definite.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> A = ihvp.Dense(np.array([[4.0, 1.0], [1.0, 3.0]]))
    >>> ihvp.solve(A, np.array([1.0, 2.0]), solver=ihvp.CG(rtol=1e-12)).x.round(6)
    array([0.090909, 0.636364])
    """

    rtol: float | None = None
    atol: float = 0.0
    max_iterations: int | None = None
    preconditioner: Literal["nystrom", "kfac", "ekfac"] | Nystrom | Preconditioner | None = None
    shared: bool = True
    on_indefinite: OnIndefinite = "raise"

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol, self.max_iterations)
        check_flag("shared", self.shared)
        check_choice("on_indefinite", self.on_indefinite, get_args(OnIndefinite))
        if not (self.preconditioner is None or _is_preconditioner(self.preconditioner)):
            raise InvalidOption(
                "preconditioner",
                self.preconditioner,
                "'nystrom', 'kfac', 'ekfac', an ihvp.Nystrom(…), a LinearOperator, a callable or None",
            )

    def prepare(self, operator: LinearOperator, damping: float) -> Preconditioned:
        system, kind = Shifted(operator, damping), self.preconditioner
        if kind == "nystrom":
            kind = Nystrom()
        elif isinstance(kind, str):
            kind = _Factors(kind, operator, damping)
        return Preconditioned(system, kind.sketch(system) if isinstance(kind, Nystrom) else kind)

    def apply(self, prepared: Preconditioned, v: Vector, *, x0: Vector | None, monitor: Monitor) -> Solution:
        system, preconditioner = prepared
        course = Refinement(
            system,
            v,
            rtol=self.rtol,
            atol=self.atol,
            x0=x0,
            monitor=monitor,
            keeps_last=self.max_iterations is not None,
        )
        if isinstance(preconditioner, (Sketch, _Factors)):
            course.operator.products += preconditioner.owed
            preconditioner.owed = 0
        return dataclasses.replace(self, preconditioner=preconditioner)._finish(course)

    def apply_shifted(
        self,
        operator: LinearOperator,
        dampings: Sequence[float],
        v: Vector,
        *,
        x0: Vector | None,
        monitor: Monitor,
    ) -> list[Solution | SolverError]:
        if self.preconditioner is not None or x0 is not None:
            return super().apply_shifted(operator, dampings, v, x0=x0, monitor=monitor)
        counted = CountedOperator(operator)
        watched = self.max_iterations is None
        shifts = [
            Shift(operator, damping, v, rtol=self.rtol, atol=self.atol, monitor=monitor, watched=watched)
            for damping in dampings
        ]
        largest = shifted_iterates(
            counted, shifts, v, iteration_limit(self.max_iterations, v), self.on_indefinite == "raise"
        )
        hardest, outcomes = int(np.argmin(dampings)), list[Solution | SolverError]()
        for number, shift in enumerate(shifts):
            course = Refinement(
                Shifted(operator, shift.damping),
                v,
                rtol=self.rtol,
                atol=self.atol,
                x0=shift.iterate(),
                monitor=monitor,
                log=shift.log,
                largest=shift.damping + largest,
                keeps_last=self.max_iterations is not None,
            )
            course.operator.products += counted.products if number == hardest else 0
            course.direction = shift.direction
            given_up = shift.indefinite[course.pending] | (shift.direction is not None)
            course.leave(given_up, "indefinite")
            try:
                outcomes.append(self._finish(course))
            except SolverError as error:
                outcomes.append(error)
        return outcomes

    def iterate(self, course: Refinement, limit: int) -> None:
        """Settle the pending columns, solved or not."""
        fatal = self.on_indefinite == "raise"
        separate: Start = partial(Conjugate, self.preconditioner, fatal)
        block = self.shared and fatal and course.v.ndim == 2 and course.v.shape[1] > 1
        start: Start = partial(BlockConjugate, self.preconditioner, fatal) if block else separate
        if isinstance(self.preconditioner, Sketch):
            start = partial(Augmented, self.preconditioner, start)
        course.run(start, limit)
        if course.reopen("lost"):
            course.run(separate, limit)

    def _finish(self, course: Refinement) -> Solution:
        """Settle what is pending; the certified solution, or the error."""
        limit = iteration_limit(self.max_iterations, course.v)
        self.iterate(course, limit)
        handed_over = self.on_indefinite == "minres" and course.reopen("indefinite")
        if handed_over:
            course.run(MinimalResidual, limit)
        solution = course.solution()
        if handed_over:
            reason = f"{solution.stop_reason} (minres after indefinite curvature)"
            solution = dataclasses.replace(solution, stop_reason=reason)
        if solution.converged:
            return solution
        if course.direction is not None:
            raise diagnosis.indefinite(course.system, solution, course.direction, course.rtol)
        course.raise_failure(solution, limit, definite=not handed_over)
        return solution


class _Factors:
    """The inverse of the Kronecker factors of an operator's objective; ``owed`` as for a sketch."""

    def __init__(self, kind: str, operator: LinearOperator, damping: float) -> None:
        objective = getattr(operator, "objective", None)
        if not isinstance(objective, Objective):
            raise InvalidOption("preconditioner", kind, "'nystrom' for an operator without an objective")
        self._factors, self._damping = (EKFAC if kind == "ekfac" else KFAC)(objective), damping
        if self._factors.is_singular(damping):
            raise InvalidOption("preconditioner", kind, "'nystrom', or a damping: the factors are singular")
        # A product takes no fewer passes than one backwards.
        self.owed = math.ceil(self._factors.passes)

    def __call__(self, r: Vector) -> Vector:
        return self._factors.solve_damped(r, self._damping)


def _is_preconditioner(value: object) -> bool:
    if isinstance(value, (str, type)):
        return value in ("nystrom", "kfac", "ekfac")
    return isinstance(value, (Nystrom, LinearOperator)) or callable(value)
