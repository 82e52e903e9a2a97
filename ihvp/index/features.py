"""Projected gradients of blocks of examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.index.records import IndexDtype, encode
from ihvp.influence.blocks import Block, rows_at_once
from ihvp.influence.gradients import gradients, loss_on, non_finite
from ihvp.kronecker import KFAC
from ihvp.memory import on_host
from ihvp.objective import Objective
from ihvp.projection import Projection
from ihvp.projection.eigen import EigenMap
from ihvp.projection.factored import FactoredMap
from ihvp.projection.map import DenseMap, RandomMap, SparseMap

# Where no gradient is formed, what passes through the layers bounds a block, which nobody has counted.
_EXAMPLES = 128


class Features:
    r"""``R (K + λI)^{-1/2} ∇C_i``: what is kept of a gradient; without a curvature K, ``R ∇C_i``.

    The products of two of them estimate those of the gradients with :math:`(K + \lambda I)^{-1}`. Half of the
    inverse stands on either side because the error of a random projection is a part of the lengths of both
    vectors, which that makes as alike as can be.
    """

    def __init__(
        self, projection: Projection, objective: Objective, curvature: KFAC | None, damping: float
    ) -> None:
        self.map: RandomMap
        if projection.kind == "eigen":
            self.map, curvature = EigenMap(projection, curvature, damping), None  # it has the root in it
        elif projection.kind == "factored":
            self.map = FactoredMap(projection, objective)
        else:
            made = SparseMap if projection.kind == "sparse" else DenseMap
            self.map = made(projection, objective.num_params)
        self._curvature, self._damping = curvature, damping

    @property
    def parts(self) -> dict[str, slice]:
        """The numbers that belong to each layer, where the projection keeps them apart."""
        return dict(self.map.parts)

    def width(self, objective: Objective) -> int:
        """How many examples make a block."""
        rows = rows_at_once(objective.num_params)
        forms_none = isinstance(self.map, FactoredMap) and self._by_layers(objective)
        return max(rows, _EXAMPLES) if forms_none else rows

    def of(self, objective: Objective, block: Block, what: str, power: float) -> NDArray[Any]:
        """Those of a block's examples, ``(b, dim)``.

        ``what``, ``power`` and the errors are those of :func:`~ihvp.influence.gradients.gradients`.
        """
        way = self._layered if self._by_layers(objective) else self._formed
        found = way(objective, block, what, power)
        if not np.all(np.isfinite(found)):
            raise non_finite(block, what)
        return found

    def _formed(self, objective: Objective, block: Block, what: str, power: float) -> NDArray[Any]:
        rows = gradients(objective, block, what, power, checked=False)
        if self._curvature is not None:
            rows = self._curvature.function(rows.T, self._root).T
        if on_host(objective.space) and not array_api_compat.is_torch_array(rows):
            rows = algebra.to_numpy(rows)  # whose operations cost less there
        return algebra.to_numpy(self.map.project(rows))

    def _layered(self, objective: Objective, block: Block, what: str, power: float) -> NDArray[Any]:
        parts = []
        for batch in block.batches:
            with loss_on(what, batch):
                assert isinstance(self.map, FactoredMap | EigenMap)
                parts.append(algebra.to_numpy(self.map.project_examples(objective, batch, power)))
        return np.concatenate(parts)

    def pull_back(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Vectors ``(b, P)`` whose products with gradients are those of ``rows`` with features."""
        vectors = algebra.to_numpy(self.map.pull_back(rows))
        if self._curvature is None:
            return vectors
        whitened = self._curvature.function(self._curvature.space.asarray(vectors).T, self._root)
        return algebra.to_numpy(whitened.T)

    def _by_layers(self, objective: Objective) -> bool:
        if self._curvature is not None or not isinstance(self.map, FactoredMap | EigenMap):
            return False
        return self.map.serves(objective)

    def _root(self, values: Vector) -> Vector:
        return (values + self._damping) ** -0.5


@dataclass(frozen=True, eq=False)
class Recorded:
    """The records of a block's training examples, ``(1, b)``."""

    objective: Objective
    features: Features
    dtype: IndexDtype

    def __call__(self, block: Block) -> NDArray[Any]:
        return encode(self.features.of(self.objective, block, "training", 1.0), self.dtype)[None]
