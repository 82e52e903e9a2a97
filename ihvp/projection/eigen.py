"""The coordinates of gradients along the eigenvectors of a curvature with the largest eigenvalues."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

import array_api_compat
import numpy as np

from ihvp import algebra
from ihvp.backend import Batch, Vector
from ihvp.errors import InvalidOption
from ihvp.kronecker import KFAC
from ihvp.kronecker.blocks import KroneckerBlock
from ihvp.kronecker.contraction import example_gradients, formed, is_loss_of, weight_rows
from ihvp.objective import Objective
from ihvp.projection.map import check_dim
from ihvp.projection.projection import Projection


class EigenMap:
    r"""``(Λ + λI)^{-1/2} Qᵀ`` for the ``dim`` largest eigenvalues Λ of a curvature K.

    With all of them the products are those with :math:`(K + \lambda I)^{-1}`; those that are left out have
    the smallest shares in the gradients of the training examples, :math:`\Lambda / (\Lambda + \lambda)`.
    """

    def __init__(self, projection: Projection, curvature: KFAC | None, damping: float) -> None:
        if curvature is None:
            expected = "curvature=ihvp.EKFAC(objective) with it, whose eigenvectors are kept, or another kind"
            raise InvalidOption("kind", projection.kind, expected)
        check_dim(projection, curvature.space.size)
        self.dim, self._curvature, self._damping = projection.dim, curvature, damping
        values = np.concatenate([algebra.to_numpy(block.values).reshape(-1) for block in curvature.blocks])
        largest = np.sort(np.argsort(-values, kind="stable")[: self.dim])
        ends = np.cumsum([0] + [block.size for block in curvature.blocks])
        bounds = np.searchsorted(largest, ends)
        self.parts: Mapping[str, slice] = {
            block.name: slice(int(start), int(stop))
            for block, start, stop in zip(curvature.blocks, bounds, bounds[1:], strict=False)
        }
        self._places = [largest[part] - start for part, start in zip(self.parts.values(), ends, strict=False)]

    def project(self, rows: Vector) -> Vector:
        columns = self._curvature.space.asarray(rows).T
        return self._kept(block.coordinates(columns) for block in self._curvature.blocks)

    def project_examples(self, objective: Objective, batch: Batch, power: float) -> Vector:
        """As :meth:`ihvp.projection.factored.FactoredMap.project_examples`, layer by layer formed."""
        names = [block.name for block in self._layers]
        found, factors = example_gradients(objective, batch, power, names)
        return self._kept(
            block.rotate(formed(weight_rows(block, *found[block.name], factors))) for block in self._layers
        )

    def serves(self, objective: Objective) -> bool:
        """Whether an objective is a loss of the outputs of the curvature's model, all of it in layers."""
        whole = len(self._layers) == len(self._curvature.blocks)
        return whole and is_loss_of(objective, self._curvature.predict)

    def pull_back(self, rows: Vector) -> Vector:
        space, found = self._curvature.space, []
        rows = space.asarray(rows)
        xp = array_api_compat.array_namespace(rows)
        nothing = xp.zeros((rows.shape[0], 1), dtype=rows.dtype, device=algebra.device(rows))
        blocks = zip(self._curvature.blocks, self.parts.values(), self._places, strict=True)
        for block, part, places in blocks:
            # Where each coordinate stands among those that are kept; the others are in a column of zeros.
            order = np.full(block.size, len(places))
            order[places] = np.arange(len(places))
            kept = xp.concat([rows[:, part], nothing], axis=1)
            coordinates = xp.reshape(algebra.take(kept, order, axis=1), (rows.shape[0], *block.values.shape))
            found.append(block.back(self._root(block.values), coordinates))
        return self._curvature.join(rows.T, found).T

    @cached_property
    def _layers(self) -> list[KroneckerBlock]:
        return [block for block in self._curvature.blocks if isinstance(block, KroneckerBlock)]

    def _root(self, values: Vector) -> Vector:
        return (values + self._damping) ** -0.5

    def _kept(self, coordinates: Iterable[Vector]) -> Vector:
        """Of coordinates ``(b, *values.shape)`` of each block those to be kept, ``(b, dim)``."""
        parts = []
        for block, found, places in zip(self._curvature.blocks, coordinates, self._places, strict=True):
            xp = array_api_compat.array_namespace(found)
            scaled = xp.reshape(self._root(block.values) * found, (found.shape[0], -1))
            parts.append(algebra.take(scaled, places, axis=1))
        return xp.concat(parts, axis=1)
