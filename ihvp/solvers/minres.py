"""The method of minimal residuals, for symmetric matrices that need not be definite."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.errors import NonFinite
from ihvp.operators.base import LinearOperator, Shifted
from ihvp.progress import Monitor
from ihvp.solution import Solution
from ihvp.solvers.base import CountedOperator, Log, Solver
from ihvp.solvers.refinement import Refinement
from ihvp.solvers.sweep import Sweep
from ihvp.solvers.tolerances import check_tolerances, iteration_limit

# What rounding leaves of a zero, in machine epsilons of the largest entry.
_ZERO = 10
# The part of what a step takes off the residual that its rounding may give back.
_HARMFUL = 0.1


@dataclass(frozen=True, kw_only=True)
class MINRES(Solver):
    r"""The method of minimal residuals, for a symmetric :math:`A + \lambda I`, definite or not.

    Minimises :math:`\|v - (A + \lambda I) x\|` over growing Krylov spaces, by the Lanczos process and a QR
    factorisation of its tridiagonal matrix (Paige and Saunders, SIAM Journal on Numerical Analysis 12, 1975).
    Columns of a block and certificates are treated as by :class:`~ihvp.CG`. Beside ``v`` it holds six
    vectors. A solution of an indefinite system is a saddle point of :math:`\frac12 x^T A x - v^T x`, not a
    minimum: where the minimum is meant, add damping and use CG.

    Parameters
    ----------
    rtol : float, optional
        A column is solved when ``‖v − (A + λI) x‖ ≤ max(rtol ‖v‖, atol)``. By default 1e-5; for parameters in
        half precision the square root of its machine epsilon: 0.03 in float16, 0.09 in bfloat16.
    atol : float
    max_iterations : int, optional
        By default ten times P, at least 100. 0 only certifies ``x0``.

    Raises
    ------
    InvalidOption
        An option is out of range, or both tolerances are 0 without a limit of iterations.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> A = ihvp.Dense(np.diag([2.0, -1.0]))
    >>> ihvp.solve(A, np.array([1.0, 1.0]), solver=ihvp.MINRES(rtol=1e-12)).x.round(6)
    array([ 0.5, -1. ])
    """

    rtol: float | None = None
    atol: float = 0.0
    max_iterations: int | None = None

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol, self.max_iterations)

    def prepare(self, operator: LinearOperator, damping: float) -> Shifted:
        return Shifted(operator, damping)

    def apply(self, prepared: Shifted, v: Vector, *, x0: Vector | None, monitor: Monitor) -> Solution:
        course = Refinement(
            prepared,
            v,
            rtol=self.rtol,
            atol=self.atol,
            x0=x0,
            monitor=monitor,
            keeps_last=self.max_iterations is not None,
        )
        limit = iteration_limit(self.max_iterations, v)
        course.run(MinimalResidual, limit)
        solution = course.solution()
        course.raise_failure(solution, limit, definite=False)
        return solution


class MinimalResidual(Sweep):
    """The recurrence of MINRES from a given residual.

    Column k of the tridiagonal matrix is ``(β_k, α_k, β_{k+1})``. Reflections ``[[c, s], [s, −c]]`` make it
    ``(ε_k, δ_k, γ_k)``, upper triangular, and x moves along ``d_k = (v_k − δ_k d_{k−1} − ε_k d_{k−2})/γ_k``.
    Beside the product, ``x``, two Lanczos vectors and two directions are all that it holds.
    """

    def __init__(self, numbers: NDArray[np.intp], x: Vector, r: Vector, targets: NDArray[np.float64]) -> None:
        super().__init__(numbers, x, targets)
        self.v, self.before, self.d, self.d_before = r, r * 0, r * 0, r * 0

    def run(self, operator: CountedOperator, limit: int, log: Log) -> None:
        eps, count = operator.operator.space.eps, self.numbers.size
        phi = np.atleast_1d(algebra.norms(self.v))  # the residual norm, by recurrence
        # The norm of the matrix: what an earlier sweep has seen tells a zero of this one.
        beta, size = np.zeros(count), np.full(count, self.largest)
        c, s, bar, epsilon = -np.ones(count), np.zeros(count), np.zeros(count), np.zeros(count)
        self.park(phi <= self.targets, "reached")
        if not self.places.size:
            return
        self.v = algebra.scale(self.v, algebra.coefficients(1 / phi[self.places], self.v))
        first = True
        while self.places.size and log.goes_on(limit):
            at = self.places
            product = operator.apply(self.v)
            product = algebra.axpy(product, -algebra.coefficients(beta[at], product), self.before)
            alpha = np.atleast_1d(algebra.dots(self.v, product))
            if not np.all(np.isfinite(alpha)):
                raise NonFinite("A product with the operator")
            self.before = algebra.axpy(product, -algebra.coefficients(alpha, product), self.v)
            del product
            self.before, self.v = self.v, self.before
            last, beta[at] = beta[at], np.atleast_1d(algebra.norms(self.v))
            size[at] = np.maximum(size[at], np.hypot(np.hypot(last, alpha), beta[at]))
            self.largest = float(size.max())

            delta = c[at] * bar[at] + s[at] * alpha
            gamma_bar = s[at] * bar[at] - c[at] * alpha
            epsilon_next, bar[at] = s[at] * beta[at], -c[at] * beta[at]
            # ‖A r‖ / ‖r‖ of the residual before this step: where it is 0, no x has a smaller residual.
            singular = np.hypot(gamma_bar, bar[at]) <= _ZERO * eps * size[at]
            if np.any(singular):
                if first:
                    self._lift(singular)
                delta, gamma_bar, epsilon_next = (
                    numbers[~singular] for numbers in (delta, gamma_bar, epsilon_next)
                )
                self.park(singular, "singular")
                if not self.places.size:
                    return
                at = self.places
            gamma = np.hypot(gamma_bar, beta[at])
            c[at], s[at] = gamma_bar / gamma, beta[at] / gamma
            before = phi[at]
            step = c[at] * before
            phi[at] *= s[at]

            # The direction before the last makes room for the next one.
            d = algebra.scale(self.d_before, algebra.coefficients(-epsilon[at] / gamma, self.v))
            d = algebra.axpy(d, -algebra.coefficients(delta / gamma, self.v), self.d)
            d = algebra.axpy(d, algebra.coefficients(1 / gamma, self.v), self.before)
            self.d, self.d_before = d, self.d
            del d
            # A step takes |step| off the residual, and adds its own rounding. Where that is no less, an
            # eigenvalue is 0 up to rounding, and x gets worse from here on.
            lost = eps * size[at] * np.abs(step) * np.atleast_1d(algebra.norms(self.d))
            harmful = lost > _HARMFUL * np.maximum(np.abs(step), self.targets[at])
            step[harmful], phi[at] = 0.0, np.where(harmful, before, phi[at])
            self.x = algebra.axpy(self.x, algebra.coefficients(step, self.v), self.d)
            epsilon[at] = epsilon_next
            first = False
            log.step(self.numbers[at], phi[at])
            self.park(harmful, "singular")
            if not self.places.size:
                return
            self.park(phi[self.places] <= self.targets[self.places], "reached")
            if self.places.size:
                self.v = algebra.scale(self.v, algebra.coefficients(1 / beta[self.places], self.v))

    def _lift(self, singular: NDArray[np.bool_]) -> None:
        """Take the residual, with which A has no product, out of x: what is left is the shortest of the best.

        Liu, Milzarek and Roosta, "Obtaining pseudo-inverse solutions with MINRES", 2023, theorem 2.
        """
        along = np.where(singular, np.atleast_1d(algebra.dots(self.before, self.x)), 0.0)
        self.x = algebra.axpy(self.x, -algebra.coefficients(along, self.x), self.before)

    def narrow(self, stay: NDArray[np.bool_]) -> None:
        self.v, self.before, self.d, self.d_before = (
            algebra.keep(block, stay) for block in (self.v, self.before, self.d, self.d_before)
        )
