"""Inverse Gauss–Newton matrices in the space of the examples' outputs, without vectors of the parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import array_api_compat
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular

from ihvp import algebra
from ihvp.backend import Batch, SupportsLayers, Vector
from ihvp.kronecker.contraction import example_gradients
from ihvp.kronecker.coverage import complete_layers, opened
from ihvp.kronecker.factors import with_bias
from ihvp.kronecker.outputs import cotangents
from ihvp.layers import Layer
from ihvp.objective import Objective
from ihvp.operators import GaussNewton

Factors: TypeAlias = "list[tuple[Vector, Vector]]"
"""Vectors of the parameters, for each layer as outer products: ``(n, d_out)`` and ``(n, d_in)``."""

_Solved: TypeAlias = "tuple[Factors, NDArray[np.floating]]"
"""Left sides, and by how much the largest rows correct them."""

# Rows whose Gram matrix is formed and factorised at most (0.6 GB in float32).
_MOST = 12_000
# The first attempt leaves out rows whose squares add up to so many times the damping; the next ones what the
# residual, which falls a little more slowly, asks for, and some more.
_LEFT_OUT, _SAFETY = 12.0, 0.6
# All rows together hold at most so many numbers (1 GB in float32).
_NUMBERS = 1 << 28
# More outputs than so many for each parameter are not the smaller space, however few of them count.
_OUTPUTS = 32
# Rows of the Gram matrix that are formed at once.
_BLOCK = 1024
# Random vectors that residuals are measured with, and the chance that any of them is larger than it is said.
_PROBES, _RISK = 32, 1e-3


@dataclass
class _Rows:
    """Rows of J, whose outer products share what goes into a layer with others of their example."""

    layers: list[Layer]
    factors: Factors  # derivatives by what comes out, (R, d_out), and what goes in, of examples, (N, d_in)
    example: NDArray[np.intp]  # which example's they are, (R,)

    def take(self, numbers: NDArray[np.intp]) -> _Rows:
        """The rows of these numbers."""
        factors = [(algebra.take(g, numbers, 0), a) for g, a in self.factors]
        return _Rows(self.layers, factors, self.example[numbers])

    def outer(self, part: slice) -> Factors:
        """Some rows, with what goes in beside each."""
        example = self.example[part]
        return [(g[part, :], algebra.take(a, example, 0)) for g, a in self.factors]

    def products(self, right: Factors, stop: int | None = None) -> NDArray[np.floating]:
        """``Σ_l (G Hᵀ) ∘ (A Bᵀ)`` of the first rows and other vectors, ``(stop, n)``."""
        left = [(g[:stop, :], a) for g, a in self.factors]
        return _products(left, right, self.example[:stop])

    def along(self, vectors: Vector) -> NDArray[np.float64]:
        """``(k, R)``: their products with vectors ``(P, k)``."""
        return _along(self.layers, self.factors, vectors, self.example)


class DualInverse:
    r"""``(JᵀJ + λI)⁻¹`` by Woodbury's identity, J the rows of a Gauss–Newton matrix and λ > 0.

    .. math:: (J^\top J + \lambda I)^{-1} b
        = \frac1\lambda \left(b - J^\top (J J^\top + \lambda I)^{-1} J b\right)

    A row of J is the derivative by the parameters along one column of the root of an example's curvature in
    its outputs: for a layer whose weights no places share an outer product :math:`g\,a^\top`. So
    :math:`J J^\top = \sum_\ell (G_\ell G_\ell^\top) \circ (A_\ell A_\ell^\top)` takes
    :math:`R^2 \sum_\ell (d_{in} + d_{out})` operations in place of :math:`R^2 P`, and so do products of rows
    with gradients. Of a fitted classifier most rows are tiny. The largest R are kept, as many as the relative
    residuals, which are to reach ``rtol``, ask for.

    Residuals are those of the operator's own products: with random vectors s,
    :math:`s^\top r = s^\top b - \lambda s^\top x - (H s)^\top x`, whose squares add up to
    :math:`\lVert r \rVert^2` times a χ² variable. What is said of them holds with the probability 0.999.
    """

    def __init__(self, operator: GaussNewton, damping: float, rtol: float) -> None:
        self._operator, self._damping, self._rtol = operator, damping, rtol
        self.tolerance = 0.0
        rows = _rows_of(operator.objective)
        squares = _squares(rows.factors, rows.example)
        order = np.argsort(-squares)
        # The largest come first; what is left out, after so many rows.
        self._rows = rows.take(order)
        self._rest = np.append(np.cumsum(squares[order][::-1])[::-1], 0.0)
        self._count = self._rows_for(_LEFT_OUT * damping)
        self._factor = _GrowingCholesky(self._rows, damping)

    def rows(self, objective: Objective, batch: Batch, power: float) -> Factors:
        """The gradients of a batch's examples, weighed as :class:`~ihvp.Objective` rows are."""
        layers = self._rows.layers
        found, factors = example_gradients(objective, batch, power, [layer.name for layer in layers])
        return [_outer(*found[layer.name], layer, factors) for layer in layers]

    def solved(self, left: Factors) -> _Solved | None:
        """What :meth:`products` needs; None where more rows than memory allows would reach the tolerance."""
        most = min(len(self._rest) - 1, _MOST)
        while True:
            y = self._factor.solve(self._rows.products(left, self._count))
            residual = np.inf if y is None else self._residual(left, y)
            if y is not None and residual <= self._rtol:
                self.tolerance = max(self.tolerance, residual)
                return left, y
            rest = self._rest[self._count] * min(_SAFETY * self._rtol / residual, 0.5)
            if y is None or self._count == most or self._rest[most] > rest:
                return None
            self._count = self._rows_for(rest)

    def products(self, solved: _Solved, right: Factors) -> NDArray[np.float64]:
        """``left (JᵀJ + λI)⁻¹ rightᵀ``, ``(n_left, n_right)``."""
        left, y = solved
        corrected = _products(left, right) - y.T @ self._rows.products(right, len(y))
        return np.asarray(corrected, dtype=np.float64) / self._damping

    def _rows_for(self, rest: float) -> int:
        """So many rows that no more than this is left out, if memory allows."""
        return min(int(np.argmax(self._rest <= rest)), _MOST)

    @cached_property
    def _probes(self) -> tuple[Vector, Vector, NDArray[np.float64], NDArray[np.float64]]:
        """Random vectors, the operator's products with them, and those of all rows with both."""
        space = self._operator.space
        probes = space.asarray(np.random.default_rng(0).standard_normal((_PROBES, space.size))).T
        images = self._operator.apply(probes)
        return probes, images, self._rows.along(probes), self._rows.along(images)

    def _residual(self, left: Factors, y: NDArray[np.floating]) -> float:
        """The largest relative residual, an upper bound but for the risk."""
        from scipy.special import gammaincinv  # a tenth of the time that importing ihvp may take

        probes, images, rows_along, rows_curved = self._probes
        along, curved = (_along(self._rows.layers, left, vectors) for vectors in (probes, images))
        # λ x = b − Jᵀ y.
        x_along = (along - rows_along[:, : len(y)] @ y) / self._damping
        x_curved = (curved - rows_curved[:, : len(y)] @ y) / self._damping
        residuals = ((along - self._damping * x_along - x_curved) ** 2).sum(axis=0)
        sizes = _squares(left)
        # Below this quantile of the χ² distribution none is in so many, but for the risk.
        least = 2 * gammaincinv(_PROBES / 2, _RISK / residuals.size)
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(residuals > 0, np.sqrt(residuals / least / sizes), 0.0)
        return float(relative.max())


class _GrowingCholesky:
    """``J Jᵀ + λI = Uᵀ U`` of the first rows, to which others are added at no price but their own."""

    def __init__(self, rows: _Rows, damping: float) -> None:
        self._rows, self._damping = rows, damping
        dtype = algebra.to_numpy(rows.factors[0][0][:0, :]).dtype
        self._upper: NDArray[np.floating] | None = np.zeros((0, 0), dtype, order="F")

    def solve(self, right: NDArray[np.floating]) -> NDArray[np.floating] | None:
        """For as many rows as ``right`` has; None where rounding is larger than the damping."""
        if self._upper is not None and len(self._upper) < len(right):
            self._upper = self._grown(self._upper, len(right))
        if self._upper is None:
            return None
        y: NDArray[np.floating] = cho_solve((self._upper, False), right, check_finite=False)
        return y

    def _grown(self, upper: NDArray[np.floating], count: int) -> NDArray[np.floating] | None:
        known = len(upper)
        grown = np.zeros((count, count), upper.dtype, order="F")
        grown[:known, :known] = upper
        # The entries below the diagonal are not all formed.
        for start in range(known, count, _BLOCK):
            stop = min(start + _BLOCK, count)
            grown[:stop, start:stop] = self._rows.products(self._rows.outer(slice(start, stop)), stop)
        corner = grown[known:, known:]
        corner[np.diag_indices_from(corner)] += self._damping
        if known:
            side = solve_triangular(upper, grown[:known, known:], trans="T", check_finite=False)
            grown[:known, known:] = side
            corner -= side.T @ side
        try:
            grown[known:, known:] = cholesky(corner, overwrite_a=True, check_finite=False)
        except LinAlgError:
            return None
        return grown


def dual_inverse(operator: GaussNewton, damping: float, rtol: float) -> DualInverse | None:
    """The inverse, where every parameter belongs to a layer whose weights no places share, and rows fit."""
    objective = operator.objective
    backend, predict = objective.backend, objective.predict
    if not isinstance(backend, SupportsLayers) or predict is None or not damping > 0:
        return None
    if not objective.batches.lasting or objective.processes.count > 1:
        return None
    batch, count = next(iter(objective.batches))
    complete, _ = complete_layers(objective, predict, batch)
    model = opened(objective, predict, batch)
    covered = sum(
        part.stop - part.start
        for layer, inputs in zip(model.layers, model.inputs, strict=True)
        for part in layer.slices
        if layer.name in complete and layer.groups == 1 and not layer.one_hot and inputs.shape[1] == 1
    )
    width = sum(layer.d_out + layer.d_in for layer in model.layers)
    outputs = model.outputs()
    views = outputs.shape[0] // count
    if covered < objective.num_params or objective.num_examples * views * width > _NUMBERS:
        return None
    # Of few parameters the space of the outputs is the larger one by far.
    if objective.num_examples * (math.prod(outputs.shape) // count) > _OUTPUTS * objective.num_params:
        return None
    return DualInverse(operator, damping, rtol)


def _rows_of(objective: Objective) -> _Rows:
    """The rows of J."""
    predict, loss = objective.require_predict()
    total = objective.mean_weight * objective.total_examples
    layers: list[Layer] = []
    inputs: list[list[Vector]] = []
    gradients: list[list[Vector]] = []
    examples: list[NDArray[np.intp]] = []
    first = 0
    for batch, count in objective.batches:
        weights = objective.weighting.of(batch, count)
        if not weights.any():
            continue
        model = opened(objective, predict, batch)
        relative, unit = objective.relative_weights(weights)
        scale = (unit / total) ** 0.5
        for vectors in cotangents(model, loss, relative, objective.space.product_eps, "exact"):
            pulled = model.pull_back(vectors)
            for view in range(vectors.shape[0]):
                gradients.append([gradient[view][:, 0, 0, :] * scale for gradient in pulled])
                examples.append(np.arange(first, first + count))
        layers = list(model.layers)
        inputs.append([_flat_inputs(a, layer) for layer, a in zip(layers, model.inputs, strict=True)])
        first += count
    xp = array_api_compat.array_namespace(inputs[0][0])
    joined = (
        [xp.concat(list(parts), axis=0) for parts in zip(*side, strict=True)] for side in (gradients, inputs)
    )
    return _Rows(layers, list(zip(*joined, strict=True)), np.concatenate(examples))


def _outer(
    inputs: Vector, gradient: Vector, layer: Layer, factors: NDArray[np.float64]
) -> tuple[Vector, Vector]:
    scale = algebra.as_like(factors, gradient)
    return gradient[:, 0, 0, :] * scale[:, None], _flat_inputs(inputs, layer)


def _flat_inputs(inputs: Vector, layer: Layer) -> Vector:
    """``(n, d_in)`` of a layer that is used at one place, with a one for its bias."""
    return with_bias(layer, inputs)[:, 0, 0, :]


def _squares(factors: Factors, example: NDArray[np.intp] | None = None) -> NDArray[np.float64]:
    """The squares of the norms; A has a row for each example, where these are given."""
    total = np.zeros(len(factors[0][0]))
    for g, a in factors:
        inputs = algebra.to_numpy((a**2).sum(axis=1)).astype(np.float64)
        total += algebra.to_numpy((g**2).sum(axis=1)) * (inputs if example is None else inputs[example])
    return total


def _products(left: Factors, right: Factors, example: NDArray[np.intp] | None = None) -> NDArray[np.floating]:
    """``Σ_l (G Hᵀ) ∘ (A Bᵀ)``, ``(n_left, n_right)``; A has a row for each example, where these are given."""
    total: Vector = None
    for (g, a), (h, b) in zip(left, right, strict=True):
        inputs = a @ b.T
        term = (g @ h.T) * (inputs if example is None else algebra.take(inputs, example, 0))
        total = term if total is None else total + term
    return np.array(algebra.to_numpy(total))


def _along(
    layers: list[Layer], factors: Factors, vectors: Vector, example: NDArray[np.intp] | None = None
) -> NDArray[np.float64]:
    """``(k, n)``: the products of outer products with vectors ``(P, k)``."""
    total = np.zeros((vectors.shape[1], len(factors[0][0])))
    for layer, (g, a) in zip(layers, factors, strict=True):
        for row, matrix in zip(total, layer.read(vectors)[:, 0], strict=True):
            outputs = a @ matrix.T
            if example is not None:
                outputs = algebra.take(outputs, example, 0)
            row += algebra.to_numpy((g * outputs).sum(axis=1))
    return total
