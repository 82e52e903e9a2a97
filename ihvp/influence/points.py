"""Test points: their gradients, multiplied by the inverse curvature block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.influence import fingerprint
from ihvp.influence.blocks import gradients
from ihvp.influence.order import counted_blocks
from ihvp.influence.products import InverseProducts
from ihvp.influence.store import Store
from ihvp.objective import Objective
from ihvp.solvers.solve import Inverse
from ihvp.space import VectorSpace

# With more columns at once, a block solve spends more on its small matrices than it saves in products; and it
# holds several blocks of that width.
_COLUMNS = 64


class Points(Protocol):
    """Where inverse products come from.

    Attributes
    ----------
    count : int
        The number of test points.
    residual : float
        The largest recomputed residual so far.
    """

    count: int
    residual: float

    def blocks(self, rows: int, store: Store | None = None) -> Iterator[tuple[int, Vector]]:
        """Yields the number of a block's first point and its ``(H + λI)⁻¹ ∇L``, ``(P, k)`` with k ≤ rows."""
        ...

    def fingerprints(self) -> dict[str, str]:
        """Of the points and of the question that is asked about them, by name."""
        ...


class Unsolved:
    """Points whose products are solved for, unless a store has them.

    Parameters
    ----------
    question : Objective
        The test loss over the test data.
    inverse : Inverse
        ``(H + λI)⁻¹``.
    progress : bool, optional
        Whether to show the solver's progress.
    """

    def __init__(self, question: Objective, inverse: Inverse, progress: bool | None) -> None:
        self._question, self._inverse, self._progress = question, inverse, progress
        self.count, self.residual = question.num_examples, 0.0

    def blocks(self, rows: int, store: Store | None = None) -> Iterator[tuple[int, Vector]]:
        for block in counted_blocks(self._question, rows):
            kept = None if store is None else store.products(block.first, block.count)
            if kept is None:
                columns = gradients(self._question, block, "test").T
                x, residual = solve_columns(self._inverse, columns, self._progress)
                if store is not None:
                    kept = rows_of(x), residual
                    store.keep_products(block.first, *kept)
            if kept is not None:
                # Fresh ones too: in another layout of memory they would give scores of other last bits.
                vectors, residual = kept
                x = self._inverse.space.asarray(vectors).T
            self.residual = max(self.residual, residual)
            yield block.first, x

    def fingerprints(self) -> dict[str, str]:
        return {
            "test data": fingerprint.of_data(self._question.batches),
            "test loss": fingerprint.of_function(self._question.loss),
        }


class Solved:
    """Points whose products were solved for earlier."""

    def __init__(self, products: InverseProducts, space: VectorSpace) -> None:
        self._products, self._space = products, space
        self.count, self.residual = len(products), products.residual

    def blocks(self, rows: int, store: Store | None = None) -> Iterator[tuple[int, Vector]]:
        for first in range(0, self.count, rows):
            yield first, self._space.asarray(self._products.vectors[first : first + rows]).T

    def fingerprints(self) -> dict[str, str]:
        return {"inverse products": fingerprint.of_array(self._products.vectors)}


def solve_columns(inverse: Inverse, columns: Vector, progress: bool | None) -> tuple[Vector, float]:
    """``(H + λI)⁻¹`` times a block ``(P, k)`` of any width, and the largest recomputed residual."""
    parts = [
        inverse.solve(columns[:, first : first + _COLUMNS], progress=progress)
        for first in range(0, columns.shape[1], _COLUMNS)
    ]
    residual = max(float(np.max(part.residual)) for part in parts)
    return (parts[0].x if len(parts) == 1 else algebra.concatenate([part.x for part in parts])), residual


def rows_of(x: Vector) -> NDArray[Any]:
    """The columns of a block ``(P, k)`` as rows ``(k, P)`` of numpy; halves in float32, which holds them."""
    return np.ascontiguousarray(algebra.to_numpy(algebra.wide(x.T)))
