"""Test points: their gradients, multiplied by the inverse curvature block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra, fingerprint
from ihvp.backend import Vector
from ihvp.influence.blocks import Block, counted_blocks, evenly, rows_at_once
from ihvp.influence.curvature import advising
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
    """Where inverse products come from."""

    count: int  # the number of test points
    residual: float  # the largest recomputed residual so far

    def blocks(self, rows: int, store: Store | None = None) -> Iterator[tuple[int, Vector]]:
        """Yields the number of a block's first point and its ``(H + λI)⁻¹ ∇L``, ``(P, k)`` with k ≤ rows."""

    def fingerprints(self) -> dict[str, str]:
        """Of the points and of the question that is asked about them, by name."""


class Unsolved:
    """Points whose products are solved for, unless a store has them.

    What is solved at once is kept at once, so that an interruption costs one solve; a block has several.
    """

    def __init__(self, question: Objective, inverse: Inverse, progress: bool | None) -> None:
        self.question, self._inverse, self._progress = question, inverse, progress
        self.count, self.residual = question.num_examples, 0.0

    def blocks(self, rows: int, store: Store | None = None) -> Iterator[tuple[int, Vector]]:
        first, held, parts = 0, 0, list[Vector]()
        with self.question.space.processes.track("Inverse products", self.count, self._progress) as advance:
            for block in counted_blocks(self.question, solve_width(self._inverse, self.count)):
                if held + block.count > rows:
                    yield first, _together(parts)
                    first, held, parts = block.first, 0, []
                parts.append(self.solved(block, store))
                held += block.count
                advance(block.count)
        yield first, _together(parts)

    def solved(self, block: Block, store: Store | None) -> Vector:
        """The inverse products of a block of points, ``(P, k)``: those of the store, or new ones."""
        kept = None if store is None else store.products(block.first, (block.count, self._inverse.space.size))
        if kept is None:
            columns = gradients(self.question, block, "test", power=0).T
            with advising(self.question, self._inverse):
                solution = self._inverse.solve(columns, progress=self._progress)
            x, residual = solution.x, float(np.max(solution.residual))
            if store is not None:
                kept = rows_of(x), residual
                store.keep_products(block.first, *kept)
        if kept is not None:
            # Fresh ones too: in another layout of memory they would give scores of other last bits.
            vectors, residual = kept
            x = self._inverse.space.asarray(vectors).T
        self.residual = max(self.residual, residual)
        return x

    def fingerprints(self) -> dict[str, str]:
        return {
            "test data": fingerprint.of_data(self.question.batches),
            "test loss": fingerprint.of_function(self.question.loss),
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


def with_training(
    points: Points, training: Objective, rows: int, columns: int, progress: bool | None
) -> Iterator[tuple[int, Vector, int, Block]]:
    """Blocks of inverse products beside blocks of training examples, each with the number of its first."""
    before, total = training.first, points.count * training.num_examples
    with training.space.processes.track("Influence", total, progress) as advance:
        for row, x in points.blocks(rows):
            for block in counted_blocks(training, columns):
                yield row, x, before + block.first, block
                advance(block.count * x.shape[1])


def solve_width(inverse: Inverse, count: int) -> int:
    """How many of ``count`` right-hand sides are solved at once."""
    # A solve holds several blocks of its width.
    return evenly(count, max(1, min(_COLUMNS, rows_at_once(inverse.space.size) // 2)))


def rows_of(x: Vector) -> NDArray[Any]:
    """The columns of a block ``(P, k)`` as rows ``(k, P)`` of numpy."""
    return np.ascontiguousarray(algebra.to_numpy(x.T))


def _together(parts: list[Vector]) -> Vector:
    return parts[0] if len(parts) == 1 else algebra.concatenate(parts)
