"""The inverse of a curvature plus a prior's precision: products, square roots, determinants, traces."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.errors import IndefinitePosterior, InvalidOption, SamplesNotConverged
from ihvp.estimators import SpectralDensity
from ihvp.estimators.probes import Estimate, host
from ihvp.estimators.spectral_density import krylov_dimension, lanczos
from ihvp.kronecker import BlockStructured
from ihvp.kronecker.blocks import Block, DenseBlock, DiagonalBlock, KroneckerBlock, eigenvectors
from ihvp.operators import GaussNewton, LowRank
from ihvp.operators.base import LinearOperator
from ihvp.operators.low_rank import Spectral
from ihvp.solvers import Solver, inverse
from ihvp.uncertainty.jacobian import gauss_newton_matrix
from ihvp.uncertainty.prior import Prior
from ihvp.uncertainty.undefined import indefinite

# A matrix of up to so many rows is formed; its eigenvalues take some seconds.
_DENSE = 2048
# Nodes of the quadrature in the bound on the error of samples.
_NODES = 64


class Precision(LinearOperator):
    """``s A + diag(d)``, or with ``whitened`` ``s diag(d)^(-1/2) A diag(d)^(-1/2)``."""

    def __init__(
        self, curvature: LinearOperator, scale: float, entries: NDArray[np.float64], *, whitened: bool = False
    ) -> None:
        super().__init__(curvature.space)
        self._curvature, self._scale, self._whitened = curvature, scale, whitened
        self._entries = self.space.asarray(entries**-0.5 if whitened else entries)

    def verify(self) -> None:
        self._curvature.verify()

    def product_error(self, v: Vector) -> float:
        return self._scale * self._curvature.product_error(v)

    def apply(self, v: Vector) -> Vector:
        entries = self._entries if v.ndim == 1 else self._entries[:, None]
        if self._whitened:
            return self._scale * entries * self._curvature.apply(entries * v)
        return algebra.axpy(self._scale * self._curvature.apply(v), 1.0, entries * v)


class Posterior(LinearOperator, ABC):
    r"""The covariance :math:`\Sigma = (s A + D)^{-1}` as an operator, with what else is asked of it.

    With D the prior's precision and :math:`M = s D^{-1/2} A D^{-1/2}`, it is
    :math:`D^{-1/2} (I + M)^{-1} D^{-1/2}`.
    """

    @abstractmethod
    def sample(self, white: Vector, steps: int, rtol: float) -> Vector:
        """``Σ^(1/2) w`` for a block of independent standard normal numbers, in that or another root."""

    @abstractmethod
    def log_determinant(self) -> Estimate:
        """``log det(sA + D) − log det D``."""

    @abstractmethod
    def shrinkage(self) -> dict[str, float]:
        """For each part of the prior ``tr(D Σ)`` over its entries, how many directions the prior decides."""


class KnownPosterior(Posterior):
    """By the eigenvalues of M, of which the root of the diagonal may be other than the prior's.

    Parameters
    ----------
    whitened : BlockStructured or LowRank
        M.
    diagonal : ndarray (P,)
        d in ``diag(d)^(1/2) (I + M) diag(d)^(1/2) = s A + D``.
    prior : Prior
    """

    def __init__(
        self, whitened: BlockStructured | LowRank, diagonal: NDArray[np.float64], prior: Prior
    ) -> None:
        super().__init__(whitened.space)
        self.whitened, self._diagonal, self._prior = whitened, diagonal, prior
        self._root = self.space.asarray(diagonal**-0.5)
        parts = whitened.blocks if isinstance(whitened, BlockStructured) else [whitened]
        self._values = np.concatenate([host(part.values).ravel() for part in parts])
        lowest = 1 + float(self._values.min())
        if lowest <= 10 * self.space.eps * (1 + float(np.abs(self._values).max())):
            raise indefinite(lowest, whitened, diagonal, prior.objective)

    @property
    def factors(self) -> dict[str, tuple[KroneckerBlock, Vector]] | None:
        """The layers' blocks by name with the eigenvalues of Σ; None where a parameter belongs to none."""
        blocks = self.whitened.blocks if isinstance(self.whitened, BlockStructured) else []
        layers = [block for block in blocks if isinstance(block, KroneckerBlock) and not block.layer.one_hot]
        if not layers or len(layers) < len(blocks):
            return None
        return {
            block.name: (block, 1 / (1 + block.values) / float(self._diagonal[block.slices[0].start]))
            for block in layers
        }

    def apply(self, v: Vector) -> Vector:
        root = self._root if v.ndim == 1 else self._root[:, None]
        return root * self.whitened.function(root * v, lambda values: 1 / (1 + values))

    @cached_property
    def root(self) -> Vector | None:
        """W, ``(P, P)``, with ``Σ = Wᵀ W``, where the curvature's matrix was formed."""
        blocks = self.whitened.blocks if isinstance(self.whitened, BlockStructured) else []
        if not (len(blocks) == 1 and isinstance(blocks[0], DenseBlock)):
            return None
        return (1 + blocks[0].values[:, None]) ** -0.5 * (self._root * blocks[0].vectors.T)

    def half(self, v: Vector) -> Vector:
        """``W v`` of a block, with ``Σ = Wᵀ W``."""
        if self.root is not None:
            return self.root @ v
        return self.whitened.function(self._root[:, None] * v, lambda values: (1 + values) ** -0.5)

    def sample(self, white: Vector, steps: int, rtol: float) -> Vector:
        return self._root[:, None] * self.whitened.function(white, lambda values: (1 + values) ** -0.5)

    def log_determinant(self) -> Estimate:
        known = np.log1p(self._values).sum() + np.log(self._diagonal / self._prior.entries).sum()
        return Estimate(float(known), 0.0, 0)

    def shrinkage(self) -> dict[str, float]:
        shares = np.empty(self.space.size)
        if isinstance(self.whitened, LowRank):
            squares, values = host(self.whitened.vectors) ** 2, self.whitened.values
            shares = 1 - squares @ (values / (1 + values))
        else:
            for block in self.whitened.blocks:
                kept = 1 / (1 + host(block.values))
                of_each = host(block.vectors) ** 2 @ kept if isinstance(block, DenseBlock) else None
                if isinstance(block, DiagonalBlock):
                    of_each = kept
                for place in block.slices:
                    # A layer's block lies within one part of the prior, so that its mean serves.
                    shares[place] = kept.mean() if of_each is None else of_each
        return self._prior.sums(shares * self._prior.entries / self._diagonal)


class ProductPosterior(Posterior):
    """By products with the curvature alone.

    Parameters
    ----------
    curvature : LinearOperator
    scale : float
    prior : Prior
    solver : Solver, optional
    density : callable
        Gives the curvature's density of eigenvalues, by quadrature.
    """

    def __init__(
        self,
        curvature: LinearOperator,
        scale: float,
        prior: Prior,
        solver: Solver | None,
        density: Callable[[], SpectralDensity],
    ) -> None:
        super().__init__(curvature.space)
        self._curvature, self._scale, self._prior = curvature, scale, prior
        self._solver, self._density = solver, density

    @cached_property
    def _whitened(self) -> Precision:
        return Precision(self._curvature, self._scale, self._prior.entries, whitened=True)

    def _indefinite(self, lowest: float) -> IndefinitePosterior:
        return indefinite(lowest, self._whitened, self._prior.entries, self._prior.objective)

    @cached_property
    def _inverse(self) -> LinearOperator:
        if self._prior.is_scalar:
            # The curvature itself, for solvers that know more of it than its products.
            damping = float(self._prior.entries[0]) / self._scale
            return inverse(self._curvature, damping, self._solver) / self._scale
        entries = self._prior.entries
        middle = inverse(self._whitened, 1.0, self._solver)
        return Precision(middle, 1.0, entries, whitened=True)

    def apply(self, v: Vector) -> Vector:
        return self._inverse.apply(v)

    def sample(self, white: Vector, steps: int, rtol: float) -> Vector:
        """By Lanczos steps, with a bound on the error.

        ``(I + M)^(-1/2) = 2/π ∫ (I + M + tan²φ)⁻¹ sec²φ dφ`` over a quarter turn; of each inverse the
        residual is known, and its norm is at most ``cos²φ`` for M without negative eigenvalues.
        """
        steps = min(steps, self.space.size)
        diagonals, off_diagonals, basis = lanczos(self._whitened, white, steps)
        nodes, weights = np.polynomial.legendre.leggauss(_NODES)
        angles, weights = (nodes + 1) * np.pi / 4, weights / 2
        coefficients, errors = np.zeros((len(basis), white.shape[1])), np.zeros(white.shape[1])
        for place, length in enumerate(algebra.norms(white)):
            size = krylov_dimension(off_diagonals[place])
            values, vectors = eigh_tridiagonal(diagonals[place, :size], off_diagonals[place, : size - 1])
            lowest = 1 + float(values.min())
            if lowest <= 0:
                raise self._indefinite(lowest)
            coefficients[:size, place] = length * (vectors * (1 + values) ** -0.5) @ vectors[0]
            last = (vectors[-1] * vectors[0]) / (1 + values + np.tan(angles[:, None]) ** 2)
            residuals = off_diagonals[place, size - 1] * np.abs(last.sum(axis=1))
            errors[place] = weights @ residuals / np.linalg.norm(coefficients[:, place]) * length
        if errors.max() > rtol:
            raise SamplesNotConverged(float(errors.max()), rtol, steps)
        total = self.space.zeros(white.shape[1])
        for vector, row in zip(basis, coefficients, strict=True):
            total = algebra.axpy(total, algebra.coefficients(row, vector), vector)
        return self._whitened._entries[:, None] * total

    def log_determinant(self) -> Estimate:
        estimate = self._spectrum(np.log1p)
        size = self.space.size
        return Estimate(size * estimate.value, size * estimate.standard_error, estimate.matvecs)

    def shrinkage(self) -> dict[str, float]:
        return {"all": self.space.size * self._spectrum(lambda values: 1 / (1 + values)).value}

    def _spectrum(self, of: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Estimate:
        """The mean of a function over the eigenvalues of M."""
        if list(self._prior.parts) != ["all"]:
            raise InvalidOption(
                "prior_precision",
                self._prior.precisions,
                "one number for the evidence where the curvature is known by its products alone; ihvp.KFAC, "
                "EKFAC, LowRank and FullRank take one for each layer",
            )
        factor, density = self._scale / float(self._prior.entries[0]), self._density()
        lowest = 1 + factor * float(density.nodes[density.weights > 0].min())
        if lowest <= 0:
            raise self._indefinite(lowest)
        return density.expectation(lambda values: of(factor * values))


def with_eigenvalues(curvature: LinearOperator) -> LinearOperator:
    """The curvature by its eigenvalues, where it has them or is small enough to be formed; or itself."""
    if isinstance(curvature, (BlockStructured, Spectral)) or curvature.space.size > _DENSE:
        return curvature
    curvature.verify()
    matrix = gauss_newton_matrix(curvature.objective) if type(curvature) is GaussNewton else None
    matrix = curvature.to_dense() if matrix is None else matrix
    pairs = eigenvectors(matrix, matrix, definite=False)
    return BlockStructured(curvature.space, [DenseBlock("all", slice(0, curvature.space.size), *pairs)])


def known_posterior(curvature: BlockStructured | Spectral, scale: float, prior: Prior) -> KnownPosterior:
    """``(s A + D)⁻¹`` of a curvature with its eigenvalues.

    Raises
    ------
    IndefinitePosterior
    InvalidOption
        The entries of a layer with factors have different precisions.
    """
    if isinstance(curvature, BlockStructured):
        blocks = [_whitened(block, scale, prior.entries) for block in curvature.blocks]
        return KnownPosterior(BlockStructured(curvature.space, blocks), prior.entries, prior)
    # A tail adds to the diagonal; what is left has low rank in any basis.
    diagonal = prior.entries + scale * curvature.tail
    xp = curvature.space.xp
    q, r = xp.linalg.qr(curvature.vectors * curvature.space.asarray(diagonal**-0.5)[:, None])
    r = host(r)
    values, rotation = np.linalg.eigh((r * (scale * (curvature.values - curvature.tail))) @ r.T)
    return KnownPosterior(LowRank.of(values, q @ algebra.as_like(rotation, q)), diagonal, prior)


def _whitened(block: Block, scale: float, entries: NDArray[np.float64]) -> Block:
    own = np.concatenate([entries[place] for place in block.slices])
    if own.min() == own.max():
        block = copy.copy(block)
        block.values = block.values * (scale / float(own[0]))
        return block
    place = block.slices[0]
    if isinstance(block, DiagonalBlock):
        return DiagonalBlock(block.name, place, block.values * algebra.as_like(scale / own, block.values))
    if not isinstance(block, DenseBlock):
        raise InvalidOption(
            "prior_precision", sorted(set(own.tolist())), f"one for the layer {block.name}, which has factors"
        )
    root = algebra.as_like(own**-0.5, block.vectors)
    half = block.vectors * root[:, None]
    pairs = eigenvectors((half * (scale * block.values)) @ half.T, block.vectors, definite=False)
    return DenseBlock(block.name, place, *pairs)
