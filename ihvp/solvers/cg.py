"""Conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.errors import InvalidOption, NonFinite, VectorError
from ihvp.operators.base import LinearOperator, Shifted
from ihvp.progress import Monitor
from ihvp.solvers import diagnosis
from ihvp.solvers.base import CountedOperator, Log, Solution, Solver, true_residual

# Sizes whose squares, and those of residuals far smaller, stay in the range of float64.
_SIZES = 1e-130, 1e130

Preconditioner = LinearOperator | Callable[[Vector], Vector]


@dataclass(frozen=True, kw_only=True)
class CG(Solver):
    r"""The method of conjugate gradients, for a positive definite :math:`A + \lambda I`.

    Minimises :math:`\frac12 x^T (A + \lambda I) x - v^T x` over growing Krylov spaces (Hestenes and Stiefel,
    Journal of Research of the National Bureau of Standards 49, 1952). The columns of a block share their
    products and are dropped as they converge. A column counts as converged only by its residual recomputed
    from the definition; where rounding has parted that from the recurrence, the iteration goes on from the
    true one. Beside ``v`` it holds four vectors (five with a preconditioner).

    Parameters
    ----------
    rtol, atol : float
        A column is solved when ``‖v − (A + λI) x‖ ≤ max(rtol ‖v‖, atol)``.
    max_iterations : int, optional
        By default ten times P, at least 100. 0 only certifies ``x0``.
    preconditioner : LinearOperator or callable, optional
        An approximation of ``(A + λI)⁻¹``, symmetric and positive definite, on flat native vectors, blocks.
    on_indefinite : {"raise", "truncate"}
        What to do where ``pᵀ(A + λI)p ≤ 0``: raise :class:`~ihvp.errors.IndefiniteCurvature`, or keep the
        iterate reached before that direction, not converged, as truncated Newton methods want it.

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

    rtol: float = 1e-5
    atol: float = 0.0
    max_iterations: int | None = None
    preconditioner: Preconditioner | None = None
    on_indefinite: Literal["raise", "truncate"] = "raise"

    def __post_init__(self) -> None:
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if not (
                isinstance(value, (int, float, np.integer, np.floating)) and np.isfinite(value) and value >= 0
            ):
                raise InvalidOption(name, value, "a finite number ≥ 0")
        limit = self.max_iterations
        if limit is not None and not (isinstance(limit, (int, np.integer)) and limit >= 0):
            raise InvalidOption("max_iterations", self.max_iterations, "an integer ≥ 0, or None")
        if self.rtol == 0 and self.atol == 0 and self.max_iterations is None:
            raise InvalidOption(
                "rtol, atol",
                (self.rtol, self.atol),
                "one of them above 0, or a max_iterations, since rounding keeps the residual above 0",
            )
        if self.on_indefinite not in ("raise", "truncate"):
            raise InvalidOption("on_indefinite", self.on_indefinite, "'raise' or 'truncate'")

    def prepare(self, operator: LinearOperator, damping: float) -> Shifted:
        return Shifted(operator, damping)

    def apply(self, prepared: Shifted, v: Vector, *, x0: Vector | None, monitor: Monitor) -> Solution:
        operator = CountedOperator(prepared)
        sizes = np.atleast_1d(algebra.norms(v))
        if np.any((sizes > 0) & ((sizes < _SIZES[0]) | (sizes > _SIZES[1]))):
            raise VectorError(
                f"The columns of v have sizes {sizes.min():.1e} to {sizes.max():.1e}; expected sizes between "
                f"{_SIZES[0]:.0e} and {_SIZES[1]:.0e}, whose squares are numbers. Scale v, and x back."
            )
        targets = np.maximum(self.rtol * sizes, self.atol)
        limit = max(10 * v.shape[0], 100) if self.max_iterations is None else self.max_iterations

        pending = np.arange(sizes.size)
        finished: list[tuple[NDArray[np.intp], Vector]] = []
        reasons = np.full(sizes.shape, "", dtype=object)
        residuals = np.full(sizes.shape, np.inf)
        x, r = v * 0, algebra.copy(v)
        if x0 is not None:
            # No step reaches the solution 0 of v = 0 exactly from elsewhere.
            x = algebra.copy(x0) * algebra.coefficients((sizes > 0).astype(np.float64), v)
            r = true_residual(operator, v, x)
        log = Log(sizes, np.atleast_1d(algebra.norms(r)), monitor)
        while pending.size:
            sweep = _Sweep(pending, x, r, targets[pending])
            del x, r
            sweep.run(self, operator, limit, log)
            x = sweep.solution()
            r = true_residual(operator, _keep(v, np.isin(np.arange(sizes.size), pending)), x)
            norms = np.atleast_1d(algebra.norms(r))
            solved = norms <= targets[pending]
            # A column that the recurrence calls solved and the true residual does not goes on from the true
            # one, as in iterative refinement, while that halves it and the products' noise leaves hope.
            again = ~solved & (sweep.reasons == "reached") & (norms <= residuals[pending] / 2)
            again &= norms > 2 * _product_errors(prepared, x, again)
            again &= sweep.direction is None
            sweep.reasons[sweep.reasons == "reached"] = "stagnated"
            sweep.reasons[solved] = "converged"
            reasons[pending], residuals[pending] = sweep.reasons, norms
            if not np.all(again):
                finished.append((pending[~again], _keep(x, ~again)))
            pending, x, r = pending[again], _keep(x, again), _keep(r, again)

        solution = log.solution(_join(finished), residuals, reasons, operator.products)
        self._raise_failure(prepared, v, solution, reasons, sweep.direction, limit)
        return solution

    def _raise_failure(
        self,
        operator: Shifted,
        v: Vector,
        solution: Solution,
        reasons: NDArray[Any],
        direction: Vector | None,
        limit: int,
    ) -> None:
        if direction is not None and not solution.converged:
            raise diagnosis.indefinite(operator, solution, direction)
        for reason in ("stagnated", "max_iterations"):
            failed = np.flatnonzero(reasons == reason)
            if failed.size:
                column, x = _column(v, failed[0]), _column(solution.x, failed[0])
                if reason == "stagnated":
                    raise diagnosis.stagnated(operator, solution, self.rtol, column, x)
                raise diagnosis.not_converged(operator, solution, self.rtol, limit, column)


class _Sweep:
    """The recurrence of CG from a given residual, on the columns that are not solved yet.

    Beside the product, ``x``, ``r`` and ``p`` are all that it holds; without preconditioner ``z`` is ``r``.
    """

    def __init__(self, numbers: NDArray[np.intp], x: Vector, r: Vector, targets: NDArray[np.float64]) -> None:
        self.numbers, self.targets = numbers, targets
        self.places = np.arange(numbers.size)
        self.x, self.r, self.p = x, r, None
        self.parked: list[tuple[NDArray[np.intp], Vector]] = []
        self.reasons = np.full(numbers.shape, "max_iterations", dtype=object)
        self.direction: Vector | None = None
        self.flat = np.zeros(numbers.shape)

    def run(self, method: CG, operator: CountedOperator, limit: int, log: Log) -> None:
        """Iterate until no column is left, the limit is reached, or the matrix proves indefinite."""
        self._park(np.atleast_1d(algebra.norms(self.r)) <= self.targets, "reached")
        if not self.places.size:
            return
        z = _precondition(method.preconditioner, self.r)
        rz = _inner(self.r, z)
        self.p = algebra.copy(z)
        del z
        while self.places.size and log.iterations < limit:
            product = operator.apply(self.p)
            curvature = np.atleast_1d(algebra.dots(self.p, product))
            if not np.all(np.isfinite(curvature)):
                raise NonFinite("A product with the operator")
            if not np.any(self.flat):
                # pᵀAp / rz is never below the lowest eigenvalue, and at the first step not above the highest: a
                # later one smaller by more than the dtype can tell proves the matrix singular in it.
                self.flat[self.places] = operator.operator.space.eps**1.5 * np.maximum(curvature / rz, 0.0)
            indefinite = curvature <= self.flat[self.places] * rz
            if np.any(indefinite):
                del product
                if method.on_indefinite == "raise":
                    self.direction = _column(self.p, int(np.argmin(curvature)))
                    self.reasons[self.places] = "indefinite"
                    return
                self._park(indefinite, "indefinite")
                rz = rz[~indefinite]
                continue
            step = algebra.coefficients(rz / curvature, self.p)
            self.r = algebra.axpy(self.r, -step, product)
            del product
            self.x = algebra.axpy(self.x, step, self.p)
            norms = np.atleast_1d(algebra.norms(self.r))
            log.step(self.numbers[self.places], norms)
            reached = norms <= self.targets[self.places]
            self._park(reached, "reached")
            if not self.places.size:
                return
            rz = rz[~reached]
            z = _precondition(method.preconditioner, self.r)
            rz, before = _inner(self.r, z), rz
            self.p = algebra.xpay(self.p, algebra.coefficients(rz / before, self.p), z)

    def solution(self) -> Vector:
        """``x`` of all columns; the sweep is over and gives its vectors up."""
        parts = [*self.parked, (self.places, self.x)] if self.places.size else self.parked
        self.x = self.r = self.p = None
        self.parked = []
        return _join(parts)

    def _park(self, leaving: NDArray[np.bool_], reason: str) -> None:
        if not np.any(leaving):
            return
        self.reasons[self.places[leaving]] = reason
        self.parked.append((self.places[leaving], _keep(self.x, leaving)))
        stay = ~leaving
        self.places = self.places[stay]
        if self.places.size:
            self.x, self.r = _keep(self.x, stay), _keep(self.r, stay)
            self.p = None if self.p is None else _keep(self.p, stay)


def _precondition(preconditioner: Preconditioner | None, r: Vector) -> Vector:
    if preconditioner is None:
        return r
    return preconditioner.apply(r) if isinstance(preconditioner, LinearOperator) else preconditioner(r)


def _inner(r: Vector, z: Vector) -> NDArray[np.float64]:
    rz = np.atleast_1d(algebra.dots(r, z))
    if np.any(rz <= 0):
        raise InvalidOption(
            "preconditioner",
            f"an operator with rᵀ M r = {rz.min():.1e} for a residual r",
            "a symmetric positive definite approximation of (A + λI)⁻¹",
        )
    return rz


def _product_errors(operator: Shifted, x: Vector, wanted: NDArray[np.bool_]) -> NDArray[np.float64]:
    errors = np.zeros(wanted.shape)
    for place in np.flatnonzero(wanted):
        errors[place] = operator.product_error(_column(x, int(place)))
    return errors


def _column(block: Vector, place: int) -> Vector:
    return block if block.ndim == 1 else block[:, place]


def _keep(block: Vector, mask: NDArray[np.bool_]) -> Vector:
    """The columns where ``mask`` holds; a vector is its only column."""
    if block.ndim == 1 or np.all(mask):
        return block
    return algebra.columns(block, np.flatnonzero(mask))


def _join(parts: list[tuple[NDArray[np.intp], Vector]]) -> Vector:
    """Parts of a block by their column numbers, as one block in order."""
    if len(parts) == 1:
        return parts[0][1]
    numbers = np.concatenate([numbers for numbers, _ in parts])
    return algebra.columns(algebra.concatenate([part for _, part in parts]), np.argsort(numbers))
