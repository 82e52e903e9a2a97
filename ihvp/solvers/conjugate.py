"""The recurrence of conjugate gradients, each column by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.arguments import naming, shape_of
from ihvp.backend import Vector
from ihvp.errors import FunctionFailed, InvalidOption, NonFinite
from ihvp.operators.base import LinearOperator
from ihvp.solvers.base import CountedOperator, Log
from ihvp.solvers.sweep import Sweep


class Conjugate(Sweep):
    """The recurrence of CG from a given residual.

    Beside the product, ``x``, ``r`` and ``p`` are all that it holds; without preconditioner ``z`` is ``r``.

    ``fatal`` says whether one direction with ``pᵀ(A + λI)p ≤ 0`` ends the sweep, or the work on its column.
    """

    def __init__(
        self,
        preconditioner: object,
        fatal: bool,
        numbers: NDArray[np.intp],
        x: Vector,
        r: Vector,
        targets: NDArray[np.float64],
    ) -> None:
        super().__init__(numbers, x, targets)
        self.preconditioner, self.fatal, self.r, self.p = preconditioner, fatal, r, None
        self.flat = np.zeros(numbers.shape)

    def run(self, operator: CountedOperator, limit: int, log: Log) -> None:
        norms = np.atleast_1d(algebra.norms(self.r))
        reached = norms <= self.targets
        self.park(reached, "reached")
        if not self.places.size:
            return
        z, rz = self._preconditioned(norms[~reached])
        self.p = algebra.copy(z)
        del z
        while self.places.size and log.goes_on(limit):
            product, parts = operator.measured(self.p, algebra.dot_parts)
            curvature = np.atleast_1d(algebra.dots(self.p, product, parts))
            if not np.all(np.isfinite(curvature)):
                # Steps along what the matrix takes to almost nothing grow beyond all numbers. The matrix is
                # to blame only where it does that to a vector of length 1.
                direction = self.p / algebra.coefficients(algebra.norms(self.p), self.p)
                if algebra.all_finite(direction) and not algebra.all_finite(operator.apply(direction)):
                    raise NonFinite("A product with the operator")
                self.park(np.ones(self.places.shape, dtype=bool), "stagnated")
                return
            if not np.any(self.flat):
                # pᵀAp / rz is never below the lowest eigenvalue, and at the first step not above the highest.
                # A later one smaller by more than the dtype can tell proves the matrix singular in it.
                self.flat[self.places] = operator.operator.space.eps**1.5 * np.maximum(curvature / rz, 0.0)
            indefinite = curvature <= self.flat[self.places] * rz
            if np.any(indefinite):
                del product
                if self.fatal:
                    self.direction = algebra.column(self.p, int(np.argmin(curvature)))
                    self.reasons[self.places] = "indefinite"
                    return
                self.park(indefinite, "indefinite")
                rz = rz[~indefinite]
                continue
            self._see(curvature / rz)
            step = algebra.coefficients(rz / curvature, self.p)
            self.x, self.r, squares = _advance(self.x, self.r, self.p, product, step)
            del product
            norms = np.atleast_1d(algebra.norms(self.r, squares))
            log.step(self.numbers[self.places], norms)
            reached = norms <= self.targets[self.places]
            self.park(reached, "reached")
            if not self.places.size:
                return
            before = rz[~reached]
            z, rz = self._preconditioned(norms[~reached])
            self.p = algebra.xpay(self.p, algebra.coefficients(rz / before, self.p), z)

    def _preconditioned(self, norms: NDArray[np.float64]) -> tuple[Vector, NDArray[np.float64]]:
        """``z = M r`` and ``rᵀ z``, for residuals of these norms."""
        z = precondition(self.preconditioner, self.r)
        if z is self.r:
            return z, norms**2
        rz = np.atleast_1d(algebra.dots(self.r, z))
        if np.any(rz <= 0):
            raise InvalidOption(
                "preconditioner",
                f"an operator with rᵀ M r = {rz.min():.1e} for a residual r",
                "a symmetric positive definite approximation of (A + λI)⁻¹",
            )
        return z, rz

    def _see(self, pivots: NDArray[np.float64]) -> None:
        """Learn the norm of the matrix from ``pᵀAp / rᵀz``: no larger than that, and close to it early on."""
        if self.preconditioner is None:
            self.largest = max(self.largest, float(pivots.max()))

    def narrow(self, stay: NDArray[np.bool_]) -> None:
        self.r = algebra.keep(self.r, stay)
        self.p = None if self.p is None else algebra.keep(self.p, stay)


def precondition(preconditioner: object, r: Vector) -> Vector:
    """``M r`` with the preconditioner M, ``r`` itself where there is none."""
    if preconditioner is None:
        return r
    if isinstance(preconditioner, LinearOperator):
        return preconditioner.apply(r)
    assert callable(preconditioner)  # what is to be made, prepare has made
    with naming(FunctionFailed, "preconditioner(r)"):
        z = preconditioner(r)
    if shape_of(z) != r.shape:
        raise InvalidOption("preconditioner", preconditioner, f"a function that returns an array {r.shape}")
    return z


@algebra.fused(0, 1)
def _advance(x: Vector, r: Vector, p: Vector, product: Vector, step: Any) -> tuple[Vector, Vector, Any]:
    """``x + step p`` and ``r − step product``, with the parts of what the new residual's norm sums up."""
    if x.ndim == 1 and isinstance(x, np.ndarray):

        def advance(rows: slice) -> Any:
            rest = algebra.axpy(r[rows], -step, product[rows])
            algebra.axpy(x[rows], step, p[rows])
            return rest @ rest

        return x, r, algebra.in_slices(advance, x)
    x, r = algebra.axpy(x, step, p), algebra.axpy(r, -step, product)
    return x, r, algebra.dot_parts(r, r)
