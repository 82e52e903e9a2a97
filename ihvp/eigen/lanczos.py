"""Lanczos' method with thick restarts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.eigen.approximation import Approximation, Products
from ihvp.eigen.basis import GrowingBasis, combinations
from ihvp.progress import Monitor, Step

Key: TypeAlias = "Callable[[NDArray[np.float64]], NDArray[np.float64]]"
"""The wanted eigenvalues are those whose keys are largest."""

# What rounding leaves of a zero, in machine epsilons.
_ZERO = 10
# The projected problem is solved after each product while it is smaller than this, and then more rarely.
_SMALL = 64
# The chance to miss a multiple eigenvalue that is accepted where an invariant subspace was found.
_MISSED = 1e-3


@dataclass(frozen=True)
class Ritz:
    """Eigenpairs of the projected operator, the most wanted first.

    Attributes
    ----------
    values : ndarray (m,)
    rotation : ndarray (m, m)
        The Ritz vectors in the basis, as columns.
    residuals : ndarray (m,)
        Norms, from the one direction that leaves the basis.
    """

    values: NDArray[np.float64]
    rotation: NDArray[np.float64]
    residuals: NDArray[np.float64]

    @property
    def size(self) -> float:
        """The largest magnitude of a Ritz value."""
        return float(np.abs(self.values).max())


class Lanczos:
    r"""The thick-restart Lanczos iteration for the k eigenpairs of the largest ``key``.

    After m products :math:`A V_m = V_m T_m + v_{m+1} b^\top` with orthonormal :math:`(V_m, v_{m+1})`, so that
    a Ritz pair :math:`T s = \theta s` has the residual :math:`|b^\top s|`. A full basis is cut back to the
    best Ritz vectors, which keep that form, with :math:`V S`, :math:`\Theta` and :math:`S^\top b` in place of
    V, T and b (Wu and Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems", SIAM
    Journal on Matrix Analysis and Applications 22, 2000). Each product is orthogonalised against the whole
    basis.

    Of an eigenspace the Krylov space of one start holds one vector. To find the others, a *probe* goes on
    from a random vector orthogonal to the pairs found. If that has a component γ along a missed eigenvector,
    then the probe's basis vectors have components :math:`p_j(\lambda)\,\gamma`, of at most 1, where the
    polynomials :math:`p_j` are known. So :math:`|p_j(\theta_k)| > 1/\delta` rules out every missed
    eigenvector with :math:`|\gamma| > \delta` (van Dorsselaer, Hochstenbach and van der Vorst, "Computing
    probabilistic bounds for extreme eigenvalues of symmetric matrices with the Lanczos method", SIAM Journal
    on Matrix Analysis and Applications 22, 2000).

    Parameters
    ----------
    product : Products
    k, capacity : int
        The pairs to find; the size of the basis, from k + 2 to P − 1.
    key : callable
    tol : float
        Residuals of at most ``tol`` times the largest Ritz value in magnitude are small enough.
    missed : float or None
        The chance to miss a wanted eigenvector that is accepted. None probes only after the basis has spanned
        an invariant subspace.
    seed : int
        Of the random vectors.
    start : Vector, optional
    """

    def __init__(
        self,
        product: Products,
        *,
        k: int,
        capacity: int,
        key: Key,
        tol: float,
        missed: float | None,
        seed: int,
        start: Vector | None,
    ) -> None:
        self.product, self.k, self.capacity, self.key, self.tol = product, k, capacity, key, tol
        self.missed, self._random = missed, np.random.default_rng(seed)
        self._eps = float(product.space.xp.finfo(product.dtype).eps)
        self._basis = GrowingBasis(product.space, capacity, product.dtype)
        self._projected = np.zeros((capacity, capacity))
        self._size = 0.0
        if start is None:
            self._next = self._random_direction()
        else:
            start = algebra.wide(start)
            self._next = start / float(algebra.norms(start))
        self._couplings = np.zeros(0)  # of the next direction to the basis: b
        self._found: NDArray[np.float64] | None = None
        self._shifts = np.zeros(0)
        self._components = np.zeros((0, capacity))
        self._next_components = np.zeros(0)

    def run(self, max_restarts: int, monitor: Monitor) -> Approximation:
        """Iterate until the pairs have converged, or the basis was full once more than ``max_restarts``."""
        restarts = 0
        while True:
            self._expand()
            if not self._is_due():
                continue
            ritz = self._ritz()
            pending = self._pending(ritz)
            monitor.step(self._step(ritz, pending))
            if pending == 0 and (self.missed is None or self._is_excluded(ritz)):
                return self._approximation(ritz, complete=True)
            probes = pending == 0 and (self._found is None or self._is_improved(ritz))
            if not probes and self._basis.size < self.capacity:
                continue
            if restarts == max_restarts:
                return self._approximation(ritz, complete=False)
            restarts += 1
            if probes:
                self._probe(ritz)
            else:
                self._restart(ritz, self._kept(pending))

    def _expand(self) -> None:
        """Multiply the next direction and make what is new in the product the next one."""
        self._basis.append(self._next)
        size = self._basis.size
        image, norms = self.product.measured(self._next)
        norm = float(norms)
        self._size = max(self._size, norm)
        coupled = np.flatnonzero(self._couplings)
        since = int(coupled[0]) if coupled.size else size - 1
        rest, projections, norm = self._basis.orthogonalise(image, norm, since=since)
        # By symmetry all but the last projection are known. Noise in them would hide convergence.
        column = np.append(self._couplings, projections[-1])
        self._projected[:size, size - 1] = self._projected[size - 1, :size] = column
        self._components[:, size - 1] = self._next_components
        self._couplings = np.zeros(size)
        if norm <= _ZERO * self._eps * self._size:
            # The basis spans an invariant subspace. Eigenvalues outside of it may be any, also multiples.
            self._next, self._next_components = self._random_direction(), np.ones(self._shifts.size)
            self.missed = self.missed or _MISSED
            return
        self._couplings[-1], self._next = norm, algebra.scale(rest, 1 / norm)
        carried = self._components[:, :size] @ column
        self._next_components = (self._shifts * self._next_components - carried) / norm

    def _is_due(self) -> bool:
        size = self._basis.size
        return size >= self.k and (size == self.capacity or size % (1 + size // _SMALL) == 0)

    def _ritz(self) -> Ritz:
        size = self._basis.size
        values, rotation = np.linalg.eigh(self._projected[:size, :size])
        order = np.argsort(-self.key(values), kind="stable")
        values, rotation = values[order], rotation[:, order]
        return Ritz(values, rotation, np.abs(self._couplings @ rotation))

    def _pending(self, ritz: Ritz) -> int:
        """The wanted pairs that have not converged."""
        return int(np.count_nonzero(ritz.residuals[: self.k] > self._limit(ritz)))

    def _limit(self, ritz: Ritz) -> float:
        """The largest residual of a converged pair."""
        # A probe forgets the residuals of the pairs that it starts from, and may mix them.
        share = 1.0 if self.missed is None else 4 * self.k**0.5
        return self.tol * ritz.size / share

    def _kept(self, pending: int) -> int:
        """The Ritz vectors to restart with: more of them as pairs converge, as ARPACK does."""
        return self.k + max(1, min(self.k - pending, (self.capacity - self.k) // 2))

    def _restart(self, ritz: Ritz, size: int) -> None:
        rotation = ritz.rotation[:, :size]
        self._components[:, :size] = self._components[:, : self._basis.size] @ rotation
        self._couplings = self._couplings @ rotation
        self._basis.rotate(rotation)
        self._projected[:] = 0.0
        np.fill_diagonal(self._projected[:size, :size], ritz.values[:size])

    def _probe(self, ritz: Ritz) -> None:
        """Go on from a random vector that is orthogonal to the wanted pairs."""
        self._restart(ritz, self.k)
        self._found = self.key(ritz.values[: self.k])
        last = ritz.values[self.k - 1]
        # For magnitudes, a missed eigenvalue may lie on either side.
        self._shifts = np.unique([value for value in (last, -last) if self.key(value) == self.key(last)])
        self._components = np.zeros((self._shifts.size, self.capacity))
        self._next, self._next_components = self._random_direction(), np.ones(self._shifts.size)
        self._couplings = np.zeros(self.k)

    def _is_improved(self, ritz: Ritz) -> bool:
        """Whether the probe found a pair that is wanted more."""
        assert self._found is not None
        return bool(np.any(self.key(ritz.values[: self.k]) > self._found + self._limit(ritz)))

    def _is_excluded(self, ritz: Ritz) -> bool:
        """Whether the probe, which has found nothing, would have found a missed eigenvector."""
        if self._found is None or self._is_improved(ritz):
            return False
        assert self.missed is not None
        if ritz.values.size > self.k and ritz.residuals[self.k] <= self._limit(ritz):
            return True  # the next pair has converged, and it is wanted less
        # |γ| of a random unit vector of P entries is below δ with probability δ √(2P/π).
        delta = self.missed * (np.pi / 2 / self.product.space.size) ** 0.5
        return bool(np.all(np.abs(self._next_components) > 1 / delta))

    def _random_direction(self) -> Vector:
        """A random unit vector that is orthogonal to the basis."""
        space = self.product.space
        entries = self._random.standard_normal(space.size)
        v = space.xp.asarray(entries, dtype=self.product.dtype, device=space.device)
        v, _, norm = self._basis.orthogonalise(v, float(algebra.norms(v)))
        return algebra.scale(v, 1 / norm)

    def _step(self, ritz: Ritz, pending: int) -> Step:
        largest = float(ritz.residuals[: self.k].max())
        return Step(self.product.count, largest / ritz.size if ritz.size else 0.0, pending)

    def _approximation(self, ritz: Ritz, *, complete: bool) -> Approximation:
        values, rotation = ritz.values[: self.k], ritz.rotation[:, : self.k]
        largest = int(np.argmax(np.abs(ritz.values)))
        vectors, rest = self._basis.combinations(rotation), self._next
        couplings = self._couplings @ rotation

        def image(mixture: NDArray[np.float64]) -> Vector:
            along = combinations(vectors, (values * mixture)[:, None])[:, 0]
            return algebra.axpy(along, float(couplings @ mixture), rest)

        return Approximation(
            values=values,
            vectors=vectors,
            residuals=ritz.residuals[: self.k],
            size=ritz.size,
            leading=self._basis.combinations(ritz.rotation[:, [largest]])[:, 0],
            image=image,
            complete=complete,
        )
