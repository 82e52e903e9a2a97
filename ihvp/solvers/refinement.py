"""Sweeps of a method, each from the true residual that the last one left: where certificates are made."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.operators.base import Shifted
from ihvp.progress import Monitor
from ihvp.solution import Solution
from ihvp.solvers import diagnosis
from ihvp.solvers.base import CountedOperator, Log, relative, true_residual
from ihvp.solvers.forecast import Watch
from ihvp.solvers.rounding import Certificate, certify, goals
from ihvp.solvers.sweep import Start
from ihvp.solvers.tolerances import column_sizes, relative_tolerance

# The rounding of the next certificate may be larger than that of the last by this factor.
_MARGIN = 1.3


class Refinement:
    """The columns of ``(A + λI) x = v``, each pending until a fresh product has settled it.

    A column that a method calls solved and the true residual does not goes on from the true one, as in
    iterative refinement, while that halves it and rounding and the products' noise leave hope. What it ends
    with is the best iterate that was certified, and never worse than zero or the first guess.

    Parameters
    ----------
    operator : Shifted
        ``A + λI``.
    v : Vector
        ``(P,)`` or ``(P, k)``.
    rtol : float or None
        A column is solved when ``‖v − (A + λI) x‖ ≤ max(rtol ‖v‖, atol)``; None for the default.
    atol : float
    x0 : Vector, optional
        The first iterates; zero where none are given. Columns that they solve are settled at once.
    monitor : Monitor
        Hears of each step.
    log : Log, optional
        The course up to ``x0``, where there was one.
    largest : float, optional
        The norm of the matrix, where it is known.
    keeps_last : bool
        Whether a column that the limit of iterations ended keeps its last iterate, whatever its residual, as
        under an explicit limit. Otherwise the work stops where its forecast exceeds the budget.

    Attributes
    ----------
    system : Shifted
        ``A + λI``, and as ``operator`` with its products counted.
    pending : ndarray
        The numbers of the columns that are not settled.
    direction : Vector or None
        A direction of curvature ≤ 0 that ended the work.
    """

    def __init__(
        self,
        operator: Shifted,
        v: Vector,
        *,
        rtol: float | None,
        atol: float,
        x0: Vector | None,
        monitor: Monitor,
        log: Log | None = None,
        largest: float | None = None,
        keeps_last: bool = True,
    ) -> None:
        r = algebra.copy(v) if x0 is None else None
        sizes = column_sizes(v if r is None else r)
        self.system, self.operator = operator, CountedOperator(operator)
        self.v, self.rtol = v, relative_tolerance(rtol, operator.space)
        self.targets = np.maximum(self.rtol * sizes, atol)
        self.goals = goals(self.targets, sizes, operator.space)
        self.largest, self.keeps_last = largest, keeps_last
        self.pending = np.arange(sizes.size)
        self.reasons = np.full(sizes.shape, "", dtype=object)
        self.direction: Vector | None = None
        self._sizes, self._norms, self._last = sizes, sizes.copy(), np.full(sizes.shape, np.inf)
        self._rounding = np.zeros(sizes.shape)  # what of the norms may be rounding
        # What is worse than the first guess gives way to it. The course so far has none to return to.
        self._guess, self._guessed = (x0 if log is None else None), sizes
        self._kept: Vector | None = None
        self._settled: list[tuple[NDArray[np.intp], Vector]] = []
        norms = sizes
        if x0 is None:
            self._x, self._r = algebra.zeros_like(r), r
            zero = sizes == 0
            if np.any(zero) and not np.all(zero):
                # Solved, and out of the way of what may happen to a block.
                self.reasons[zero] = "converged"
                self._divide(self._x, r, ~zero)
        else:
            # No step reaches the solution 0 of v = 0 exactly from elsewhere.
            x = algebra.scale(algebra.copy(x0), algebra.coefficients((sizes > 0).astype(np.float64), v))
            norms = self._open(x)
            self._guessed = self._norms.copy()
        watch = None if keeps_last else Watch(operator, v, relative(self.targets, sizes))
        self.log = Log(sizes, norms, monitor, watch) if log is None else log

    def run(self, start: Start, limit: int) -> None:
        """Sweep until every column is settled."""
        while self.pending.size:
            sweep = start(self.pending, self._x, self._r, self.goals[self.pending])
            self._x = self._r = None
            sweep.largest = self.largest or 0.0
            if self.log.watch is not None:
                self.log.watch.restart(self.log.iterations)
            sweep.run(self.operator, limit, self.log)
            self.largest = sweep.largest or self.largest
            parts, reasons, self.direction = sweep.parts(), sweep.reasons, sweep.direction
            del sweep  # and with it the vectors of its recurrence
            x = algebra.join(parts)
            del parts
            self.check(x, reasons)

    def take(self) -> tuple[Vector, Vector]:
        """The iterates of the pending columns and their residuals, handed over."""
        taken, self._x, self._r = (self._x, self._r), None, None
        return taken

    def check(self, x: Vector, reasons: NDArray[Any]) -> NDArray[np.float64]:
        """Settle the pending columns by fresh products with ``x``, or let them go on; their residual norms.

        Parameters
        ----------
        x : Vector
            The iterates of the pending columns.
        reasons : ndarray of str
            Why the method left each: "reached" claims the target, "singular" that none is lower.
        """
        r = self._residual(x)
        at, last, claimed = self.pending, self._last[self.pending], np.isin(reasons, ("reached", "singular"))
        certificate = self._certify(x, r, claimed)
        norms, rounding = certificate.norms, certificate.rounding
        solved = certificate.bounds <= self.targets[at]
        again = ~solved & claimed & np.isfinite(norms)
        # Within the target, only the rounding of the residual is left to make room for.
        again &= norms <= np.where(norms <= self.targets[at], 0.9, 0.5) * last
        again &= norms > 2 * self._noise(x, again)
        # A measured loss will be about the same next time.
        room = self.targets[at] - _MARGIN * rounding
        again &= ~certificate.measured | (room > 0)
        lowered = certificate.measured & again
        self.goals[at] = np.where(lowered, np.minimum(self.goals[at], room), self.goals[at])
        if self.direction is not None:
            again[:] = False
        reasons = np.where(reasons == "reached", "stagnated", reasons)
        if self.log.forecast is not None:
            reasons = np.where(reasons == "max_iterations", "unaffordable", reasons)
        reasons[solved] = "converged"
        self.reasons[at] = reasons
        better = solved | (certificate.bounds <= (1 + 1e-6) * self._norms[at]) | ~np.isfinite(last)
        again &= better
        x = self._restored(x, ~better)
        self._norms[at] = np.where(better, certificate.bounds, self._norms[at])
        self._rounding[at] = np.where(better, rounding, self._rounding[at])
        self._last[at] = np.where(better, norms, last)
        self._divide(x, r, again)
        return norms

    def leave(self, columns: NDArray[np.bool_], reason: str) -> None:
        """Settle these of the pending columns as they are."""
        self.reasons[self.pending[columns]] = reason
        self._divide(self._x, self._r, ~columns)

    def reopen(self, reason: str) -> bool:
        """Make the columns that were left for this reason pending again; whether there are any."""
        chosen = self.reasons == reason
        if not np.any(chosen):
            return False
        x, numbers = algebra.join(self._settled), np.arange(chosen.size)
        self._settled = [] if np.all(chosen) else [(numbers[~chosen], algebra.keep(x, ~chosen))]
        self.pending = numbers[chosen]
        self._open(algebra.keep(x, chosen))
        return True

    def solution(self) -> Solution:
        """The answer, once no column is pending."""
        return self.log.solution(
            self._no_worse_than_the_guess(algebra.join(self._settled)),
            self._norms,
            self._rounding,
            self.reasons,
            self.operator.products,
        )

    def raise_failure(self, solution: Solution, limit: int, *, definite: bool) -> None:
        """Raise what explains why a column failed; nothing where the caller asked for the iterate."""
        error = diagnosis.failure(
            self.system,
            solution,
            self.reasons,
            self.v,
            rtol=self.rtol,
            limit=limit,
            definite=definite,
            forecast=self.log.forecast,
        )
        if error is not None:
            raise error

    def _open(self, x: Vector) -> NDArray[np.float64]:
        """Start the pending columns from ``x``; the norms of their residuals."""
        r = self._residual(x)
        certificate = self._certify(x, r)
        solved = certificate.bounds <= self.targets[self.pending]
        self._norms[self.pending], self._last[self.pending] = certificate.bounds, np.inf
        self._rounding[self.pending] = certificate.rounding
        self.reasons[self.pending] = np.where(solved, "converged", "")
        self._divide(x, r, ~solved)
        return certificate.norms

    def _certify(self, x: Vector, r: Vector, claimed: NDArray[np.bool_] | None = None) -> Certificate:
        at = self.pending
        return certify(
            self.operator,
            self._right_hand_sides(),
            x,
            r,
            sizes=self._sizes[at],
            targets=self.targets[at],
            claimed=claimed,
            largest=self.largest,
            shift=abs(self.system.shift),
        )

    def _restored(self, x: Vector, worse: NDArray[np.bool_]) -> Vector:
        """``x`` with the last certified iterates where the new ones are worse."""
        return _replaced(x, worse, self._kept) if self._kept is not None and np.any(worse) else x

    def _no_worse_than_the_guess(self, x: Vector) -> Vector:
        """``x`` with the first guess, or zero, in place of what is worse."""
        exempt = self.reasons == "converged"
        if self.keeps_last:
            exempt |= self.reasons == "max_iterations"
        if self.direction is None:
            exempt |= self.reasons == "indefinite"  # truncated, as the caller asked
        least = np.minimum(self._sizes, self._guessed)
        worse = ~exempt & ~(self._norms <= least)
        if not np.any(worse):
            return x
        zero = worse & ((self._sizes <= self._guessed) | (self._guess is None))
        x = _replaced(x, zero, None)
        if np.any(worse & ~zero):
            x = _replaced(x, worse & ~zero, self._guess)
        self._norms[worse] = least[worse]
        return x

    def _divide(self, x: Vector, r: Vector, again: NDArray[np.bool_]) -> None:
        if not np.all(again):
            self._settled.append((self.pending[~again], algebra.keep(x, ~again)))
        self.pending = self.pending[again]
        self._x, self._r = (
            (algebra.keep(x, again), algebra.keep(r, again)) if self.pending.size else (None, None)
        )
        # The next sweep writes to x, and may make it worse.
        self._kept = (
            algebra.copy(self._x)
            if self.pending.size and np.all(np.isfinite(self._last[self.pending]))
            else None
        )

    def _residual(self, x: Vector) -> Vector:
        return true_residual(self.operator, self._right_hand_sides(), x)

    def _right_hand_sides(self) -> Vector:
        return algebra.keep(self.v, np.isin(np.arange(self.targets.size), self.pending))

    def _noise(self, x: Vector, wanted: NDArray[np.bool_]) -> NDArray[np.float64]:
        errors = np.zeros(wanted.shape)
        for place in () if self.system.is_exact else np.flatnonzero(wanted):
            errors[place] = self.system.product_error(algebra.column(x, int(place)))
        return errors


def _replaced(x: Vector, chosen: NDArray[np.bool_], by: Vector | None) -> Vector:
    """``x`` with the columns of another block, or zeros, where chosen."""
    if not np.any(chosen):
        return x
    if x.ndim == 1:
        return algebra.zeros_like(x) if by is None else algebra.copy(by)
    numbers = np.arange(chosen.size)
    new = algebra.keep(x, chosen) if by is None else algebra.keep(by, chosen)
    new = algebra.zeros_like(new) if by is None else new
    if np.all(chosen):
        return algebra.copy(new)
    return algebra.join([(numbers[~chosen], algebra.keep(x, ~chosen)), (numbers[chosen], new)])
