"""Conjugate gradients for several dampings at once: one Krylov space serves them all.

The Lanczos process of A and v is that of every ``A + λI``. Each λ has its own triangular factorisation of the
shifted tridiagonal matrix, which gives the step lengths of CG by scalar recurrences (Frommer and Maass, "Fast
CG-based methods for Tikhonov-Phillips regularization", SIAM Journal on Scientific Computing 20, 1999). Unlike
the variants that follow one seed system, it does not mind a damping that is too small to make A definite.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.errors import NonFinite
from ihvp.operators.base import LinearOperator, Shifted
from ihvp.progress import Monitor, Step
from ihvp.solvers.base import CountedOperator, Log, relative
from ihvp.solvers.forecast import Watch
from ihvp.solvers.rounding import goals
from ihvp.solvers.tolerances import column_sizes, relative_tolerance


class Shift:
    """The iterates of CG for one damping, by coefficients of a Lanczos process.

    Its residual after step k is ``σ v_{k+1}``, its direction ``p ← σ v_{k+1} + ω p``. Where it is
    ``watched``, the work is to stop if it would exceed the budget.
    """

    def __init__(
        self,
        operator: LinearOperator,
        damping: float,
        v: Vector,
        *,
        rtol: float | None,
        atol: float,
        monitor: Monitor,
        watched: bool,
    ) -> None:
        sizes = column_sizes(v)
        targets = np.maximum(relative_tolerance(rtol, operator.space) * sizes, atol)
        watch = Watch(Shifted(operator, damping), v, relative(targets, sizes)) if watched else None
        self.damping = damping
        self.targets = goals(targets, sizes, operator.space)
        self.open = sizes > self.targets  # the columns that are still worked on
        self.indefinite = np.zeros(sizes.shape, dtype=bool)  # those that ended in pᵀ(A + λI)p ≤ 0
        self.direction: Vector | None = None  # such a p
        self.log = Log(sizes, sizes, monitor, watch)
        self.sigma = sizes.copy()
        self._step, self._omega, self._flat = np.ones(sizes.size), np.zeros(sizes.size), np.zeros(sizes.size)
        self._places = np.arange(sizes.size)
        self._x, self._p = algebra.zeros_like(v), algebra.zeros_like(v)
        self._parked: list[tuple[NDArray[np.intp], Vector]] = []

    def advance(
        self, alpha: NDArray[np.float64], beta: NDArray[np.float64], eps: float, strict: bool
    ) -> None:
        """Move x along p by the Lanczos coefficients of this step; ``strict`` ends it where indefinite."""
        if self._p is None:
            return
        at = self._places
        active = self.open[at]
        # The same pivots as in CG, pᵀ(A + λI)p / rᵀr, and the same bound on what the dtype can tell from 0.
        pivot = alpha + self.damping - self._omega[at] / self._step[at]
        first = self._flat[at] == 0
        self._flat[at[first]] = eps**1.5 * np.maximum(pivot[first], 0.0)
        flat = active & (pivot <= self._flat[at])
        if np.any(flat):
            self.indefinite[at[flat]] = True
            self.open[at[flat]] = False
            if strict:
                self.direction = algebra.copy(algebra.column(self._p, int(np.flatnonzero(flat)[0])))
                self.open[:] = False
                return
            active &= ~flat
        step = np.divide(1.0, pivot, out=np.zeros(at.size), where=active)
        self._x = algebra.axpy(self._x, algebra.coefficients(step, self._x), self._p)
        self._step[at] = np.where(active, step, 1.0)
        ratio = beta * step
        self.sigma[at], self._omega[at] = -ratio * self.sigma[at], ratio**2
        numbers = at[active]
        if not numbers.size:
            return
        self.log.record(numbers, np.abs(self.sigma[numbers]))
        self.open[numbers] = np.abs(self.sigma[numbers]) > self.targets[numbers]
        if self.log.forecast is not None:
            self.open[:] = False

    def turn(self, following: Vector) -> None:
        """The next direction, from the next Lanczos vector."""
        if self._p is None:
            return
        at = self._places
        sigma, omega = (np.where(self.open[at], numbers[at], 0.0) for numbers in (self.sigma, self._omega))
        p = algebra.scale(self._p, algebra.coefficients(omega, self._p))
        self._p = algebra.axpy(p, algebra.coefficients(sigma, p), following)

    def narrow(self, stay: NDArray[np.bool_]) -> None:
        """Go on with these columns; all that are left are finished."""
        if self._p is None:
            return
        if not np.any(self.open):
            stay = np.zeros_like(stay)
        if np.all(stay):
            return
        self._parked.append((self._places[~stay], algebra.keep(self._x, ~stay)))
        self._places = self._places[stay]
        self._x, self._p = (
            (algebra.keep(self._x, stay), algebra.keep(self._p, stay)) if np.any(stay) else (None, None)
        )

    def iterate(self) -> Vector:
        """``x`` of all columns, handed over."""
        parts = [*self._parked, (self._places, self._x)] if self._places.size else self._parked
        self._x, self._p, self._parked = None, None, []
        return algebra.join(parts)


def shifted_iterates(
    operator: CountedOperator, shifts: Sequence[Shift], v: Vector, limit: int, strict: bool
) -> float:
    """Advance the shifts until each column of each is finished, or ``limit`` iterations are done.

    Returns the norm of A as far as the products have shown it.

    ``operator`` is A, without damping, and each shift is made for ``v``. Where ``strict``, one column of
    curvature ≤ 0 ends its damping.
    """
    sizes, monitor = shifts[0].log.sizes, shifts[0].log.monitor
    places, iterations, largest = np.arange(sizes.size), 0, 0.0
    current, following, beta = algebra.zeros_like(v), algebra.copy(v), sizes
    while True:
        stay = np.any([shift.open[places] for shift in shifts], axis=0)
        for shift in shifts:
            shift.narrow(stay)
        if iterations == limit or not np.any(stay):
            return largest
        places, beta = places[stay], beta[stay]
        before, current = algebra.keep(current, stay), algebra.keep(following, stay)
        current = algebra.scale(current, algebra.coefficients(1 / beta, current))
        for shift in shifts:
            shift.turn(current)
        following = operator.apply(current)
        following = algebra.axpy(following, -algebra.coefficients(beta, following), before)
        del before
        alpha = np.atleast_1d(algebra.dots(current, following))
        if not np.all(np.isfinite(alpha)):
            raise NonFinite("A product with the operator")
        following = algebra.axpy(following, -algebra.coefficients(alpha, following), current)
        beta = np.atleast_1d(algebra.norms(following))
        largest = max(largest, float(np.hypot(alpha, beta).max()))
        iterations += 1
        for shift in shifts:
            shift.advance(alpha, beta, operator.operator.space.eps, strict)
        worst = max(float(relative(np.abs(shift.sigma), sizes).max()) for shift in shifts)
        monitor.step(Step(iterations, worst, places.size))
