"""Block conjugate gradients: one Krylov space for many right-hand sides."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.errors import InvalidOption, NonFinite
from ihvp.orthogonal import orthonormal
from ihvp.solvers.base import CountedOperator, Log
from ihvp.solvers.conjugate import precondition
from ihvp.solvers.sweep import Sweep

# A direction that holds less than this part of every column's target is left out of the block.
_NEGLIGIBLE = 0.05

# The recurrence uses the Gram matrix of its basis, which therefore need not be orthonormal to rounding.
_DEVIATION = 0.01

# Curvature below this many machine epsilons of the largest in the block may be rounding.
_NOISE = 2


class BlockConjugate(Sweep):
    r"""Block CG from given residuals (O'Leary, Linear Algebra and its Applications 29, 1980).

    The residuals are kept as ``R = Q C`` with Q nearly orthonormal, so that they may become dependent without
    harm (Dubrulle, ETNA 12, 2001). With ``N = Qᵀ M Q``, M the preconditioner, a step from directions P is

    .. math::
        \alpha = (P^T A P)^{-1} N, \quad X \mathrel{+}= P \alpha C, \quad Q' S = Q - A P \alpha, \quad
        C' = S C, \quad P' = M Q' + P N^{-1} S^T N'

    Directions of Q that depend on others are dropped, at the start also those within the targets. Later ones
    stay while they help: a block that lost a direction has a shorter memory. Only once no more than half of
    them matter to the columns not yet solved, the others are dropped together and cost no products.

    A sweep that rounding has brought too far from conjugate directions leaves its columns for the reason
    "lost"; the recurrence of separate columns holds for longer.

    Beside ``x`` and the product, it holds two blocks of at most k vectors. Parameters as in
    :class:`~ihvp.solvers.conjugate.Conjugate`; a bad direction belongs to all columns.
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
        super().__init__(numbers, algebra.by_columns(x), targets)
        self.preconditioner, self.fatal = preconditioner, fatal
        self.q: Vector = r
        self.p: Vector = None
        self.c: NDArray[np.float64] = np.empty(0)
        self.gram: NDArray[np.float64] = np.empty(0)
        self.left_out = np.zeros(targets.shape)
        self.flat: float | None = None
        self.eps = float(array_api_compat.array_namespace(r).finfo(r.dtype).eps)

    def run(self, operator: CountedOperator, limit: int, log: Log) -> None:
        with algebra.leaving_the_cores_to(self.q):
            self._run(operator, limit, log)

    def _run(self, operator: CountedOperator, limit: int, log: Log) -> None:
        start = algebra.norms(self.q)
        solved = start <= self.targets
        self.park(solved, "reached")
        if not self.places.size:
            return
        self.q, units = algebra.by_columns(algebra.keep(self.q, ~solved)), start[self.places]
        self.q = algebra.scale(self.q, algebra.coefficients(1 / units, self.q))
        basis = orthonormal(self.q, scale=1.0, deviation=_DEVIATION)
        self.q, self.gram = basis.vectors, basis.gram
        self.c = np.zeros((self.gram.shape[0], start.size))
        self.c[:, self.places] = basis.coefficients * units
        self._drop(np.eye(self.gram.shape[0]), most=self.gram.shape[0])
        z, inner = self._preconditioned()
        self.p = algebra.copy(z)
        del z, basis
        while self.places.size and log.goes_on(limit):
            if not self.gram.size:  # the residuals are so large or so small that none is a direction
                self._leave("lost")
                return
            product, parts = operator.measured(self.p, algebra.gram_parts)
            curvature = algebra.total(parts)
            if not np.all(np.isfinite(curvature)):
                raise NonFinite("A product with the operator")
            curvature = (curvature + curvature.T) / 2
            if not self._definite(operator, curvature, inner):
                return
            step = _solve(curvature, inner)
            if not np.all(np.isfinite(step)):
                self._leave("lost")
                return
            moves = (algebra.small(matrix, self.p) for matrix in (step @ self.c, -step))
            self.x, self.q, parts = _advance(self.x, self.q, self.p, product, *moves)
            del product
            self.gram = algebra.total(parts)
            norms = self._norms()
            log.step(self.numbers[self.places], norms)
            reached = norms <= self.targets[self.places]
            self.park(reached, "reached")
            if not self.places.size:
                return
            if not np.all(norms[~reached] <= start[self.places] / self.eps**0.5):
                self._leave("lost")
                return
            basis = orthonormal(self.q, scale=1.0, deviation=_DEVIATION, gram=self.gram)
            self.q, self.gram, change = basis.vectors, basis.gram, basis.coefficients
            del basis
            self.c = change @ self.c
            change = self._drop(change, most=inner.shape[0] // 2)
            before = inner
            z, inner = self._preconditioned()
            back = _solve(before, change.T @ inner)
            if not np.all(np.isfinite(back)):
                self._leave("lost")
                return
            self.p = algebra.multiply(self.p, back, z)
            del z

    def park(self, leaving: NDArray[np.bool_], reason: str) -> None:
        # The iterates stay in their block: a column without coefficients is not changed any more.
        self.reasons[self.places[leaving]] = reason
        if self.c.size:
            self.c[:, self.places[leaving]] = 0.0
        self.places = self.places[~leaving]

    def _leave(self, reason: str) -> None:
        self.park(np.ones(self.places.shape, dtype=bool), reason)

    def narrow(self, stay: NDArray[np.bool_]) -> None:
        """Nothing: columns share their blocks."""

    def parts(self) -> list[tuple[NDArray[np.intp], Vector]]:
        return [(np.arange(self.numbers.size), self.x)]

    def _norms(self) -> NDArray[np.float64]:
        """The residual norms of the columns not yet solved, what was left out of the block included."""
        c = self.c[:, self.places]
        return np.asarray(
            np.sqrt(np.maximum(np.sum(c * (self.gram @ c), axis=0), 0.0)) + self.left_out[self.places]
        )

    def _drop(self, change: NDArray[np.float64], most: int) -> NDArray[np.float64]:
        """Keep the directions that matter, where these are ``most`` at most; ``change``, into those kept."""
        at = self.places
        targets = np.maximum(self.targets[at], np.finfo(np.float64).tiny)
        relative = self.c[:, at] / targets
        count = int(np.sum(np.linalg.svd(relative, compute_uv=False) > _NEGLIGIBLE))
        if count > most or count == relative.shape[0]:
            return change
        directions = np.linalg.svd(relative)[0]
        kept, dropped = directions[:, :count], directions[:, count:]
        self.left_out[at] += np.linalg.norm(dropped.T @ self.c[:, at], axis=0)
        self.q = algebra.multiply(self.q, kept)
        self.c, self.gram = kept.T @ self.c, kept.T @ self.gram @ kept
        return np.asarray(kept.T @ change)

    def _preconditioned(self) -> tuple[Vector, NDArray[np.float64]]:
        """``Z = M Q`` and ``N = Qᵀ Z``."""
        if self.preconditioner is None or not self.gram.size:
            return self.q, self.gram
        z = precondition(self.preconditioner, self.q)
        inner = algebra.gram(self.q, z)
        if not np.all(np.isfinite(inner)):
            raise NonFinite("A product with the preconditioner")
        inner = (inner + inner.T) / 2
        eps, lowest = self.eps, float(np.linalg.eigvalsh(inner)[0])
        if lowest < -_NOISE * eps * float(np.linalg.norm(inner, 2)):
            raise InvalidOption(
                "preconditioner",
                f"an operator with rᵀ M r = {lowest:.1e} for a vector r of length 1",
                "a symmetric positive definite approximation of (A + λI)⁻¹",
            )
        return z, inner

    def _definite(
        self, operator: CountedOperator, curvature: NDArray[np.float64], inner: NDArray[np.float64]
    ) -> bool:
        """Whether ``PᵀAP`` is positive beyond doubt; if not, leave the columns for the reason why."""
        eps = self.eps
        if self.preconditioner is not None:
            spread = np.linalg.eigvalsh(inner)
            if spread[0] <= _NOISE * eps * spread[-1]:
                self._leave("lost")
                return False
        if self.flat is not None:
            lowest, highest = np.linalg.eigvalsh(curvature)[[0, -1]]
            least, most = np.linalg.eigvalsh(inner)[[0, -1]]
            self._see(highest / most)
            # These bound what is asked below, at a fraction of its price.
            if least > 0 and lowest / most > max(_NOISE * eps * highest / least, self.flat):
                return True
        quotients, vectors = scipy.linalg.eigh(curvature, inner, check_finite=False)
        if self.flat is None:
            # As with one column: no later quotient is so much smaller unless the matrix is singular.
            self.flat = eps**1.5 * max(float(quotients[-1]), 0.0)
            self._see(quotients[-1])
        doubt = _NOISE * eps * float(np.linalg.norm(curvature, 2)) * float(np.sum(vectors[:, 0] ** 2))
        if quotients[0] > max(doubt, self.flat):
            return True
        # The sum of many products has more rounding than one product with the direction in question.
        direction = algebra.multiply(self.p, vectors[:, :1])[:, 0]
        if float(algebra.dots(direction, operator.apply(direction))) > self.flat:
            self._leave("lost")
            return False
        self._leave("indefinite")
        self.direction = direction if self.fatal else None
        return False

    def _see(self, quotient: float) -> None:
        """Learn the norm of the matrix; with a preconditioner the quotients are those of another one."""
        if self.preconditioner is None:
            self.largest = max(self.largest, float(quotient))


def _solve(matrix: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.solve(matrix, right), dtype=np.float64)


@algebra.fused(0, 1)
def _advance(
    x: Vector, q: Vector, p: Vector, product: Vector, along: Any, back: Any
) -> tuple[Vector, Vector, Any]:
    """``x + p along`` and ``q + product back``, with the parts of the Gram matrix of the latter."""
    x, q = algebra.plus_product(x, p, along), algebra.plus_product(q, product, back)
    return x, q, algebra.gram_parts(q, q)
