"""Lanczos' method with thick restarts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.eigen.approximation import Approximation, Products
from ihvp.eigen.basis import GrowingBasis, combinations
from ihvp.eigen.probe import Probe
from ihvp.eigen.wanted import Wanted
from ihvp.eigenpairs import Eigenpairs
from ihvp.errors import NonFinite
from ihvp.progress import Monitor, Step

# What rounding leaves of a zero, in machine epsilons.
_ZERO = 10
# The projected problem is solved after each product while it is smaller than this, and then more rarely.
_SMALL = 64
# The chance to miss a multiple eigenvalue that is accepted where an invariant subspace was found.
_MISSED = 1e-3
# Shares of the tolerance. Couplings e of the pairs to the rest of the space, and what a probe does not see
# of it, η, move eigenvalues by at most η/2 + √(η²/4 + e²): together less than the tolerance.
_COUPLED, _UNSEEN = 0.25, 0.9


@dataclass(frozen=True, eq=False)
class Search:
    """How eigenpairs are searched for."""

    capacity: int  # the size of the basis, from k + 2 to P − 1
    tol: float  # residuals of at most so many times the largest Ritz value in magnitude are small enough
    # The chance to miss a wanted eigenvector that is accepted. None probes only after the basis has spanned
    # an invariant subspace.
    missed: float | None
    noisy: bool  # whether the products' own error, if larger, takes the place of tol in what a probe must see
    max_restarts: int
    seed: int  # of the random vectors
    start: Vector | None
    known: Eigenpairs | None  # to begin with a probe for others


@dataclass(frozen=True)
class Ritz:
    """Eigenpairs of the projected operator, the most wanted first."""

    values: NDArray[np.float64]  # (m,)
    rotation: NDArray[np.float64]  # (m, m), the Ritz vectors in the basis, as columns
    residuals: NDArray[np.float64]  # (m,), norms, from the one direction that leaves the basis


class Lanczos:
    r"""The thick-restart Lanczos iteration for the k wanted eigenpairs.

    After m products :math:`A V_m = V_m T_m + v_{m+1} b^\top` with orthonormal :math:`(V_m, v_{m+1})`, so that
    a Ritz pair :math:`T s = \theta s` has the residual :math:`|b^\top s|`. A full basis is cut back to the
    best Ritz vectors, which keep that form, with :math:`V S`, :math:`\Theta` and :math:`S^\top b` in place of
    V, T and b (Wu and Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems", SIAM
    Journal on Matrix Analysis and Applications 22, 2000). Each product is orthogonalised against the whole
    basis.

    Of an eigenspace the Krylov space of one start holds one vector. Therefore, once the pairs have converged,
    a *probe* goes on from a random vector that is orthogonal to them. It ends with a further pair, after
    which the next one begins, or with the proof that there is none (:class:`~ihvp.eigen.probe.Probe`).
    """

    def __init__(self, product: Products, wanted: Wanted, search: Search) -> None:
        self.product, self.wanted, self.k, self.capacity = product, wanted, wanted.k, search.capacity
        self.tol, self.missed, self.noisy = search.tol, search.missed, search.noisy
        self.max_restarts, known, start = search.max_restarts, search.known, search.start
        self._random = np.random.default_rng(search.seed)
        self._eps = product.space.eps
        self._basis = GrowingBasis(product.space, self.capacity)
        self._projected = np.zeros((self.capacity, self.capacity))
        self._image_norm = self._size = 0.0  # the largest norm of a product, and magnitude of a Ritz value
        self._couplings = np.zeros(0)  # of the next direction to the basis: b
        self._left: list[tuple[Vector, NDArray[np.float64]]] = []  # directions left by probes, with their b
        self._leading: Vector = None
        self._probe: Probe | None = None
        self._probes, self._margin, self._found = 0, 0.0, np.zeros(0)
        if known is not None:
            for place in range(self.k):
                self._basis.append(algebra.column(known.vectors, place))
            np.fill_diagonal(self._projected[: self.k, : self.k], known.values)
            self._couplings, self._next = np.zeros(self.k), self._random_direction()
        elif start is None:
            self._next = self._random_direction()
        else:
            self._next = start / float(algebra.norms(start))

    def run(self, max_products: int | None, monitor: Monitor) -> Approximation:
        """Iterate until the pairs have converged and no other is missed, or up to a limit.

        The basis may be full once more than ``max_restarts``, and ``max_products`` be made.
        """
        restarts = 0
        if self._basis.size:
            self._begin_probe(self._ritz())
        while True:
            self._expand()
            if not self._is_due():
                continue
            ritz = self._ritz()
            pending = self._pending(ritz)
            monitor.step(self._step(ritz, pending))
            if pending == 0 and np.all(self._assured(ritz)):
                return self._approximation(ritz, complete=True)
            probes = pending == 0 and (self._probe is None or self._is_improved(ritz))
            spent = max_products is not None and self.product.count >= max_products
            if not probes and not spent and self._basis.size < self.capacity:
                continue
            if spent or restarts == self.max_restarts:
                return self._approximation(ritz, complete=False)
            restarts += 1
            if probes:
                self._begin_probe(ritz)
            else:
                self._restart(ritz, self._kept(pending))

    def _expand(self) -> None:
        """Multiply the next direction and make what is new in the product the next one."""
        self._basis.append(self._next)
        size = self._basis.size
        coupled = np.flatnonzero(self._couplings)
        since = int(coupled[0]) if coupled.size else size - 1
        found = self._basis.orthogonalise_product(self.product.followed_by, self._next, since)
        if not math.isfinite(found[2]):
            # The product alone finds out what is not finite.
            found = self._basis.orthogonalise(self.product.unchecked(self._next))
        rest, projections, norm = found
        size_of_image = math.hypot(norm, *projections.tolist())
        if not math.isfinite(size_of_image):
            raise NonFinite("A product with the operator")
        self._image_norm = max(self._image_norm, size_of_image)
        # By symmetry all but the last projection are known. Noise in them would hide convergence.
        column = np.append(self._couplings, projections[-1])
        self._projected[:size, size - 1] = self._projected[size - 1, :size] = column
        self._couplings = np.zeros(size)
        if norm <= max(_ZERO * self._eps * self._image_norm, self.product.space.smallest):
            rest, norm = self._beyond_rounding(rest, norm)
        if self._probe is not None:
            self._probe.extend(column, norm)
        if norm == 0:
            # The basis spans an invariant subspace. Eigenvalues outside of it may be any, also multiples.
            self._next = self._random_direction()
            self.missed = self.missed or _MISSED
            return
        self._couplings[-1], self._next = norm, algebra.scale(rest, 1 / norm)

    def _beyond_rounding(self, rest: Vector, norm: float) -> tuple[Vector, float]:
        """What to go on from where only rounding errors are left of a product; the norm 0 for nothing.

        They serve a probe: in relation to them, whatever was missed is large.
        """
        if self._probe is None or norm <= self.product.space.smallest:
            return rest, 0.0
        rest, _, left = self._basis.orthogonalise(algebra.scale(rest, 1 / norm))
        return (algebra.scale(rest, norm / left), norm) if left > 0.5 else (rest, 0.0)

    def _is_due(self) -> bool:
        size = self._basis.size
        return size >= self.k and (size == self.capacity or size % (1 + size // _SMALL) == 0)

    def _ritz(self) -> Ritz:
        size = self._basis.size
        values, rotation = np.linalg.eigh(self._projected[:size, :size])
        self._size = max(self._size, float(np.abs(values).max()))
        order = self.wanted.order(values)
        values, rotation = values[order], rotation[:, order]
        return Ritz(values, rotation, np.abs(self._couplings @ rotation))

    def _pending(self, ritz: Ritz) -> int:
        """The wanted pairs that have not converged."""
        residuals, limit = ritz.residuals[: self.k], self.tol * self._size
        if self.missed is not None:
            # A probe forgets the residuals of the pairs that it starts from, and may mix them.
            limit *= _COUPLED / (1 + self._probes)
            if np.linalg.norm(residuals) <= limit:
                return 0
            limit /= self.k**0.5
        return int(np.count_nonzero(residuals > limit))

    def _kept(self, pending: int) -> int:
        """The Ritz vectors to restart with: more of them as pairs converge, as ARPACK does."""
        room = (self.capacity - self.k) // 2
        # Once all have, it is the polynomial of a probe that has to grow, and it grows with what is kept.
        return self.k + max(1, room if pending == 0 else min(self.k - pending, room))

    def _restart(self, ritz: Ritz, size: int) -> None:
        rotation = ritz.rotation[:, :size]
        before = self._basis.size
        if self._probe is not None:
            self._probe.rotate(rotation)
        self._left = [(v, couplings[:before] @ rotation) for v, couplings in self._padded_left()]
        self._couplings = self._couplings @ rotation
        self._basis.rotate(rotation)
        self._projected[:] = 0.0
        np.fill_diagonal(self._projected[:size, :size], ritz.values[:size])

    def _padded_left(self) -> list[tuple[Vector, NDArray[np.float64]]]:
        return [(v, np.pad(couplings, (0, self._basis.size - couplings.size))) for v, couplings in self._left]

    def _begin_probe(self, ritz: Ritz) -> None:
        """Go on from a random vector that is orthogonal to the wanted pairs."""
        if self._leading is None:
            # It may leave the basis.
            self._leading = self._largest(ritz)
            noise = self.product.noise(self._leading) if self.noisy else 0.0
            self._margin = max(_UNSEEN * self.tol * self._size, noise)
        self._restart(ritz, self.k)
        if np.any(self._couplings):
            self._left.append((self._next, self._couplings))
        self._found = ritz.values[: self.k]
        self._probe = Probe(*self.wanted.fences(self._found, self._margin), self.capacity)
        self._probes += 1
        self._next, self._couplings = self._random_direction(), np.zeros(self.k)

    def _is_improved(self, ritz: Ritz) -> bool:
        """Whether the probe found a pair that is wanted more."""
        return self.wanted.change(self._found, ritz.values[: self.k]) > self._margin / 2

    def _assured(self, ritz: Ritz) -> NDArray[np.bool_]:
        """For each wanted pair, whether no eigenvector is missed that would take its place."""
        if self.missed is None:
            return np.ones(self.k, dtype=bool)
        if self._probe is None or self._is_improved(ritz):
            return np.zeros(self.k, dtype=bool)
        # The chances of all probes sum to what is accepted.
        chance = self.missed / (self._probes * (self._probes + 1))
        return self._probe.excluded(chance, self.product.space.size)

    def _random_direction(self) -> Vector:
        """A random unit vector that is orthogonal to the basis."""
        space = self.product.space
        entries = self._random.standard_normal(space.size)
        v = space.asarray(entries)
        v, _, norm = self._basis.orthogonalise(v)
        return algebra.scale(v, 1 / norm)

    def _step(self, ritz: Ritz, pending: int) -> Step:
        largest = float(ritz.residuals[: self.k].max())
        return Step(self.product.count, largest / self._size if self._size else 0.0, pending)

    def _largest(self, ritz: Ritz) -> Vector:
        largest = int(np.argmax(np.abs(ritz.values)))
        return self._basis.combinations(ritz.rotation[:, [largest]])[:, 0]

    def _approximation(self, ritz: Ritz, *, complete: bool) -> Approximation:
        values, rotation = ritz.values[: self.k], ritz.rotation[:, : self.k]
        vectors = self._basis.combinations(rotation)
        beside = [(self._next, self._couplings @ rotation)]
        beside += [(v, couplings @ rotation) for v, couplings in self._padded_left()]

        def image(mixture: NDArray[np.float64]) -> Vector:
            total = combinations(vectors, (values * mixture)[:, None])[:, 0]
            for direction, couplings in beside:
                total = algebra.axpy(total, float(couplings @ mixture), direction)
            return total

        return Approximation(
            values=values,
            vectors=vectors,
            residuals=np.sum([np.abs(couplings) for _, couplings in beside], axis=0),
            assured=self._assured(ritz),
            size=self._size,
            leading=self._largest(ritz) if self._leading is None else self._leading,
            image=image,
            complete=complete,
        )
