"""Inverse Gauss–Newton matrices in the space of the examples' outputs, without vectors of the parameters."""

from __future__ import annotations

from typing import TypeAlias

import array_api_compat
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_solve, cholesky
from scipy.stats import chi2

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

# Rows whose Gram matrix is formed and factorised at most (0.6 GB in float32).
_MOST = 12_000
# The first attempt leaves out rows whose squares add up to so many times the damping; the next ones what the
# residual, about proportional to it, asks for, and some more.
_LEFT_OUT, _SAFETY = 12.0, 0.7
# All rows together hold at most so many numbers (1 GB in float32).
_NUMBERS = 1 << 28
# Rows of the Gram matrix that are formed at once.
_BLOCK = 1024
# Random vectors that residuals are measured with, and the chance that any of them is larger than it is said.
_PROBES, _RISK = 24, 1e-3


class DualInverse:
    r"""``(JᵀJ + λI)⁻¹`` by Woodbury's identity, J the rows of a Gauss–Newton matrix.

    .. math:: (J^\top J + \lambda I)^{-1} b
        = \frac1\lambda \left(b - J^\top (J J^\top + \lambda I)^{-1} J b\right)

    A row of J is the derivative by the parameters along one column of the root of an example's curvature in
    its outputs: for a layer whose weights no places share an outer product :math:`g\,a^\top`. So
    :math:`J J^\top = \sum_\ell (G_\ell G_\ell^\top) \circ (A_\ell A_\ell^\top)` takes
    :math:`R^2 \sum_\ell (d_{in} + d_{out})` operations in place of :math:`R^2 P`, and so do products of rows
    with gradients. Of a fitted classifier most rows are tiny. The largest R are kept, as many as residuals
    ask for.

    Residuals are those of the operator's own products: with random vectors s,
    :math:`s^\top r = s^\top b - \lambda s^\top x - (H s)^\top x`, whose squares add up to
    :math:`\lVert r \rVert^2` times a χ² variable. What is said of them holds with the probability 0.999.

    Parameters
    ----------
    operator : GaussNewton
    damping : float
        λ > 0.
    rtol : float
        The relative residual to reach.
    """

    def __init__(self, operator: GaussNewton, damping: float, rtol: float) -> None:
        self._operator, self._damping, self._rtol = operator, damping, rtol
        self.tolerance = 0.0
        self._layers, self._rows, norms = _rows_of(operator.objective)
        self._order = np.argsort(-norms)
        # What is left out, after so many rows.
        self._rest = np.append(np.cumsum(norms[self._order][::-1])[::-1], 0.0)
        self._count = self._rows_for(_LEFT_OUT * damping)
        self._kept: Factors = []
        self._cholesky: NDArray[np.floating] | None = None
        self._solved: tuple[object, NDArray[np.floating]] | None = None
        self._probes: tuple[Vector, Vector] | None = None

    def rotated(self, objective: Objective, batch: Batch, power: float) -> Factors:
        """The gradients of a batch's examples, weighed as :class:`~ihvp.Objective` rows are."""
        names = [layer.name for layer in self._layers]
        found, factors = example_gradients(objective, batch, power, names)
        return [_outer(*found[layer.name], layer, factors) for layer in self._layers]

    def products(self, left: Factors, right: Factors) -> NDArray[np.float64]:
        """``left (JᵀJ + λI)⁻¹ rightᵀ``, ``(n_left, n_right)``, of vectors for which :meth:`solves` holds."""
        assert self._solved is not None
        assert self._solved[0] is left
        corrected = _products(left, right) - self._solved[1].T @ _products(self._kept, right)
        return np.asarray(corrected, dtype=np.float64) / self._damping

    def solves(self, left: Factors) -> bool:
        """Whether the inverse products of these vectors reach the tolerance, with rows that memory allows."""
        if self._solved is not None and self._solved[0] is left:
            return True
        most = min(len(self._order), _MOST)
        while True:
            y = self._coefficients(left)
            residual = np.inf if y is None else self._residual(left, y)
            if y is not None and residual <= self._rtol:
                self._solved = left, y
                self.tolerance = max(self.tolerance, residual)
                return True
            rest = self._rest[self._count] * min(_SAFETY * self._rtol / residual, 0.5)
            if self._count == most or self._rest[most] > rest:
                return False
            self._count, self._cholesky = self._rows_for(rest), None

    def _rows_for(self, rest: float) -> int:
        """So many rows that no more than this is left out, if memory allows."""
        return min(int(np.argmax(self._rest <= rest)), len(self._order), _MOST)

    def _coefficients(self, left: Factors) -> NDArray[np.floating] | None:
        if self._cholesky is None:
            numbers = self._order[: self._count]
            self._kept = [(algebra.take(g, numbers, 0), algebra.take(a, numbers, 0)) for g, a in self._rows]
            gram = _gram(self._kept)
            gram[np.diag_indices_from(gram)] += self._damping
            try:
                self._cholesky = cholesky(gram, lower=True, overwrite_a=True, check_finite=False)
            except LinAlgError:  # rounding is larger than the damping
                return None
        y: NDArray[np.floating] = cho_solve(
            (self._cholesky, True), _products(self._kept, left), check_finite=False
        )
        return y

    def _residual(self, left: Factors, y: NDArray[np.floating]) -> float:
        """The largest relative residual, an upper bound but for the risk."""
        if self._probes is None:
            space = self._operator.space
            draws = np.random.default_rng(0).standard_normal((_PROBES, space.size))
            probes = space.asarray(draws).T
            self._probes = probes, self._operator.apply(probes)
        probes, images = self._probes
        along, curved = (self._along(left, vectors) for vectors in (probes, images))
        kept_along, kept_curved = (self._along(self._kept, vectors) for vectors in (probes, images))
        # λ x = b − Jᵀ y.
        x_along = (along - kept_along @ y) / self._damping
        x_curved = (curved - kept_curved @ y) / self._damping
        residuals = ((along - self._damping * x_along - x_curved) ** 2).sum(axis=0)
        sizes = _squares(left)
        least = chi2.ppf(_RISK / residuals.size, _PROBES)
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(residuals > 0, np.sqrt(residuals / least / sizes), 0.0)
        return float(relative.max())

    def _along(self, factors: Factors, vectors: Vector) -> NDArray[np.float64]:
        """``(k, n)``: the products with vectors ``(P, k)``."""
        total = np.zeros((vectors.shape[1], len(factors[0][0])))
        for layer, (g, a) in zip(self._layers, factors, strict=True):
            for row, matrix in zip(total, layer.read(vectors)[:, 0], strict=True):
                row += algebra.to_numpy(((g @ matrix) * a).sum(axis=1))
        return total


def dual_inverse(operator: GaussNewton, damping: float, rtol: float) -> DualInverse | None:
    """The inverse, where every parameter belongs to a layer whose weights no places share, and rows fit."""
    objective = operator.objective
    backend, predict = objective.backend, objective.predict
    if not isinstance(backend, SupportsLayers) or predict is None or not damping > 0:
        return None
    if not objective.batches.lasting or objective.num_processes > 1:
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
    views = model.outputs().shape[0] // count
    if covered < objective.num_params or objective.num_examples * views * width > _NUMBERS:
        return None
    return DualInverse(operator, damping, rtol)


def _rows_of(objective: Objective) -> tuple[list[Layer], Factors, NDArray[np.float64]]:
    """The rows of J, layer by layer, and the squares of their norms."""
    predict, loss = objective.require_predict()
    total = objective.mean_weight * objective.total_examples
    layers: list[Layer] = []
    parts: list[Factors] = []
    for batch, count in objective.batches:
        weights = objective.weighting.of(batch, count)
        if not weights.any():
            continue
        model = opened(objective, predict, batch)
        layers = list(model.layers)
        relative, unit = objective.relative_weights(weights)
        share = np.full(count, (unit / total) ** 0.5)
        for vectors in cotangents(model, loss, relative, "exact"):
            pulled = model.pull_back(vectors)
            for view in range(vectors.shape[0]):
                parts.append(
                    [
                        _outer(inputs, gradient[view], layer, share)
                        for layer, inputs, gradient in zip(model.layers, model.inputs, pulled, strict=True)
                    ]
                )
    xp = array_api_compat.array_namespace(parts[0][0][0])
    rows = [
        (xp.concat([g for g, _ in layer], axis=0), xp.concat([a for _, a in layer], axis=0))
        for layer in zip(*parts, strict=True)
    ]
    return layers, rows, _squares(rows)


def _squares(rows: Factors) -> NDArray[np.float64]:
    """The squares of the norms of the rows."""
    terms = (algebra.to_numpy((g**2).sum(axis=1) * (a**2).sum(axis=1)) for g, a in rows)
    return np.asarray(sum(term.astype(np.float64) for term in terms))


def _outer(
    inputs: Vector, gradient: Vector, layer: Layer, factors: NDArray[np.float64]
) -> tuple[Vector, Vector]:
    scale = algebra.as_like(factors, gradient)
    return gradient[:, 0, 0, :] * scale[:, None], with_bias(layer, inputs)[:, 0, 0, :]


def _gram(rows: Factors) -> NDArray[np.floating]:
    """``Σ_l (G Gᵀ) ∘ (A Aᵀ)``, of which the entries above the diagonal are not all formed."""
    count = len(rows[0][0])
    gram = np.zeros((count, count), algebra.to_numpy(rows[0][0]).dtype)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        block = [(g[start:stop, :], a[start:stop, :]) for g, a in rows]
        gram[start:stop, :stop] = _products(block, [(g[:stop, :], a[:stop, :]) for g, a in rows])
    return gram


def _products(left: Factors, right: Factors) -> NDArray[np.floating]:
    """``Σ_l (G Gᵀ) ∘ (A Aᵀ)``, ``(n_left, n_right)``."""
    total: Vector = None
    for (g, a), (h, b) in zip(left, right, strict=True):
        term = (g @ h.T) * (a @ b.T)
        total = term if total is None else total + term
    return np.array(algebra.to_numpy(total))
