"""Projections of a model's gradients layer by layer, by what goes into a layer and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Batch, Vector
from ihvp.errors import InvalidOption
from ihvp.kronecker.contraction import example_gradients, is_loss_of
from ihvp.kronecker.coverage import complete_layers
from ihvp.kronecker.estimate import require_layers
from ihvp.kronecker.factors import with_bias
from ihvp.layers import Layer
from ihvp.objective import Objective
from ihvp.objective.entries import Entries
from ihvp.projection.map import check_dim
from ihvp.projection.projection import Projection
from ihvp.weighting import scale_rows


@dataclass(frozen=True, eq=False)
class _Sides:
    """The two factors of one layer's projection, for each of its groups."""

    layer: Layer
    left: NDArray[np.float64]  # (groups, k_out, d_out)
    right: NDArray[np.float64]  # (groups, k_in, d_in), the bias among the inputs

    @property
    def size(self) -> int:
        groups, rows, _ = self.left.shape
        return int(groups * rows * self.right.shape[1])


class FactoredMap:
    r"""``R_out ⊗ R_in`` for the weights of each layer; what is in no layer is left out.

    The rows of both factors are orthonormal in random directions, times :math:`\sqrt{d/k}`, so that
    :math:`E[R^T R] = I` on the layers; a factor with as many rows as columns is the identity. The layers are
    those that are seen on the first batch of an objective made with ``predict``.
    """

    def __init__(self, projection: Projection, objective: Objective) -> None:
        check_dim(projection, objective.num_params)
        advice = "Take Projection(kind='sparse'), which asks for gradients only."
        _, self._predict, _ = require_layers(objective, advice)
        objective.require_examples()
        batch, _ = next(iter(objective.batches))
        layers, self.left_out = complete_layers(objective, self._predict, batch)
        if not layers:
            raise InvalidOption(
                "projection", projection, "kind='sparse': no layer of this model is seen whole"
            )
        generator = np.random.default_rng(projection.seed)
        self._layers = [
            _Sides(
                layer,
                _orthonormal(generator, layer.groups, *out),
                _orthonormal(generator, layer.groups, *into),
            )
            for layer, out, into in _sizes(list(layers.values()), projection.dim)
        ]
        self.dim, self._size = sum(sides.size for sides in self._layers), objective.num_params

    @property
    def parts(self) -> Mapping[str, slice]:
        """The numbers of a projected gradient that belong to each layer."""
        found, start = {}, 0
        for sides in self._layers:
            found[sides.layer.name] = slice(start, start + sides.size)
            start += sides.size
        return found

    def project_examples(self, objective: Objective, batch: Batch, power: float) -> Vector:
        """``R`` times the gradients of a batch's examples, ``(B, dim)``, none of which is formed.

        The objective is a loss with this map's ``predict``; ``power`` is that of
        :meth:`ihvp.Objective.batch_gradient_chunks`.
        """
        names = [sides.layer.name for sides in self._layers]
        found, factors = example_gradients(objective, batch, power, names)
        parts = [_projected(sides, *found[sides.layer.name]) for sides in self._layers]
        xp = array_api_compat.array_namespace(parts[0])
        return scale_rows(xp.concat(parts, axis=1), factors)

    def serves(self, objective: Objective) -> bool:
        """Whether an objective is a loss of the outputs of this map's model."""
        return is_loss_of(objective, self._predict)

    def project(self, rows: Vector) -> Vector:
        xp, parts = array_api_compat.array_namespace(rows), []
        for sides in self._layers:
            matrices = sides.layer.read(rows.T)
            left, right = (algebra.as_like(side, rows) for side in (sides.left, sides.right))
            found = left @ matrices @ xp.matrix_transpose(right)
            parts.append(xp.reshape(found, (found.shape[0], -1)))
        return xp.concat(parts, axis=1)

    def pull_back(self, rows: Vector) -> Vector:
        xp, placed = array_api_compat.array_namespace(rows), list[tuple[slice, Vector]]()
        for sides, part in zip(self._layers, self.parts.values(), strict=True):
            left, right = (algebra.as_like(side, rows) for side in (sides.left, sides.right))
            matrices = xp.reshape(
                rows[:, part], (rows.shape[0], left.shape[0], left.shape[1], right.shape[1])
            )
            found = sides.layer.parts(xp.matrix_transpose(left) @ matrices @ right)
            placed += zip(sides.layer.slices, found, strict=True)
        placed.sort(key=lambda pair: pair[0].start)
        entries = Entries([place for place, _ in placed], self._size)
        return entries.within(xp.concat([values for _, values in placed], axis=0)).T


def _projected(sides: _Sides, inputs: Vector, gradient: Vector) -> Vector:
    """``Σ_s (R_out g) (R_in a)ᵀ``, ``(B, groups · k_out · k_in)``."""
    xp, layer = array_api_compat.array_namespace(gradient), sides.layer
    left, right = (algebra.as_like(side, gradient) for side in (sides.left, sides.right))
    g = _applied(left, gradient)
    if layer.one_hot:
        a = xp.take(right[0].T, xp.reshape(inputs, (-1,)), axis=0)
        a = xp.reshape(a, (g.shape[0], 1, -1, right.shape[1]))
    else:
        a = _applied(right, with_bias(layer, inputs))
    rows = xp.matrix_transpose(g) @ a
    return xp.reshape(rows, (rows.shape[0], -1))


def _applied(side: Vector, values: Vector) -> Vector:
    """``(groups, k, d)`` times ``(B, S, groups, d)``, ``(B, groups, S, k)``."""
    xp = array_api_compat.array_namespace(values)
    return xp.permute_dims(values, (0, 2, 1, 3)) @ xp.matrix_transpose(side)


def _orthonormal(generator: np.random.Generator, groups: int, rows: int, columns: int) -> NDArray[np.float64]:
    if rows == columns:
        return np.tile(np.eye(rows), (groups, 1, 1))
    found = [np.linalg.qr(generator.standard_normal((columns, rows)))[0].T for _ in range(groups)]
    stacked: NDArray[np.float64] = np.stack(found) * (columns / rows) ** 0.5
    return stacked


def _sizes(layers: Sequence[Layer], dim: int) -> list[tuple[Layer, tuple[int, int], tuple[int, int]]]:
    """For each layer the rows and columns of both factors: equal shares of ``dim``, unless one needs less."""
    widths = {layer.name: layer.d_in + (layer.bias is not None and not layer.one_hot) for layer in layers}
    order = sorted(layers, key=lambda layer: layer.groups * layer.d_out * widths[layer.name])
    found: dict[str, tuple[int, int]] = {}
    left = dim
    for number, layer in enumerate(order):
        share, d_out, d_in = left // (len(order) - number) // layer.groups, layer.d_out, widths[layer.name]
        if share < 1:
            expected = f"at least {sum(layer.groups for layer in layers):,}: one for each group of each layer"
            raise InvalidOption("dim", dim, expected)
        out = min(d_out, max(1, round(share**0.5)), share)
        into = min(d_in, share // out)
        out = min(d_out, share // into)
        found[layer.name] = out, into
        left -= layer.groups * out * into
    return [
        (layer, (found[layer.name][0], layer.d_out), (found[layer.name][1], widths[layer.name]))
        for layer in layers
    ]
