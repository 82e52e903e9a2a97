"""Test points: their gradients, multiplied by the inverse curvature block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.influence import fingerprint
from ihvp.influence.blocks import counted_blocks, rows_at_once
from ihvp.influence.gradients import gradients
from ihvp.influence.products import InverseProducts
from ihvp.influence.store import Store
from ihvp.objective import Objective
from ihvp.solvers.solve import Inverse
from ihvp.space import VectorSpace

# Wide blocks share one Krylov space. Measured with 297 points and P = 650 to 6,570, blocks of 150 take three
# quarters of the products and of the time of blocks of 64; beyond, the small matrices cost what is saved.
_COLUMNS = 160


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
    count = columns.shape[1]
    # A solve holds several blocks of its width; all are about as wide.
    most = max(1, min(_COLUMNS, rows_at_once(columns.shape[0]) // 2))
    width = math.ceil(count / math.ceil(count / most))
    parts = [
        inverse.solve(columns[:, first : first + width], progress=progress)
        for first in range(0, count, width)
    ]
    residual = max(float(np.max(part.residual)) for part in parts)
    return (parts[0].x if len(parts) == 1 else algebra.concatenate([part.x for part in parts])), residual


def rows_of(x: Vector) -> NDArray[Any]:
    """The columns of a block ``(P, k)`` as rows ``(k, P)`` of numpy; halves in float32, which holds them."""
    return np.ascontiguousarray(algebra.to_numpy(algebra.wide(x.T)))
