"""The scores, tile by tile: inverse products of test points against streamed training gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ihvp import fingerprint
from ihvp.backend import Vector
from ihvp.influence.blocks import Block, counted_blocks, tile_columns, windows
from ihvp.influence.factored import contraction_of, rotated
from ihvp.influence.gradients import derivatives_along
from ihvp.influence.points import Points, Unsolved
from ihvp.influence.store import Store
from ihvp.influence.trained import TrainedModel
from ihvp.influence.workers import Products, over_workers
from ihvp.kronecker.contraction import Contraction
from ihvp.kronecker.dual import DualInverse
from ihvp.objective import Objective
from ihvp.progress import track

Tile = tuple[int, int, NDArray[Any]]
"""The number of the first test point, that of the first training example, and their scores ``(k, b)``."""


def tiles(
    model: TrainedModel,
    points: Points,
    training: Objective,
    progress: bool | None,
    store: Store | None = None,
) -> Iterator[Tile]:
    """``1/N ∇C_i · x_j`` of this process's examples and all test points; of a store, the tiles it lacks."""
    before = training.first
    columns = tile_columns(training.num_params, training.total_examples)
    each = training.without_data()  # a worker is sent this, and its blocks
    with track(
        "Influence", points.count * training.num_examples, progress, training.space.processes.rank
    ) as advance:
        for row, count, products in _queries(model, points, training, each, store):
            wanted = windows(training, columns)
            if store is not None:
                wanted = store.missing(row, count, wanted, training)
            for block, own, found in over_workers(products, wanted):
                yield row, before + block.first, (found[:, own] / model.total).astype(model.dtype)
                advance((own.stop - own.start) * count)


def _queries(
    model: TrainedModel, points: Points, training: Objective, each: Objective, store: Store | None
) -> Iterator[tuple[int, int, Products]]:
    """The number of a block's first test point, how many it has, and what gives their products ``(k, b)``."""
    contraction = contraction_of(model, points, training)
    if contraction is None:
        for row, x in points.blocks(model.rows, store):
            yield row, x.shape[1], _Along(each, x)
        return
    assert isinstance(points, Unsolved)
    for asked in counted_blocks(points.question, model.rows):
        left = rotated(contraction, points.question, asked, "test", power=0)
        if contraction.solves(left):
            points.residual = max(points.residual, contraction.tolerance)
            yield asked.first, asked.count, _Contracted(each, contraction, left)
        else:
            yield asked.first, asked.count, _Along(each, points.solved(asked, store))


@dataclass(frozen=True, eq=False)
class _Along:
    """``∇C_i · x_j`` of formed inverse products."""

    objective: Objective
    x: Vector

    def __call__(self, block: Block) -> NDArray[Any]:
        return derivatives_along(self.objective, block, self.x, "training").T


@dataclass(frozen=True, eq=False)
class _Contracted:
    """``∇C_i · x_j`` layer by layer, of test gradients in the factors' basis."""

    objective: Objective
    contraction: Contraction | DualInverse
    left: list[Any]

    def __call__(self, block: Block) -> NDArray[Any]:
        right = rotated(self.contraction, self.objective, block, "training", power=1)
        return self.contraction.products(self.left, right)


def terms(model: TrainedModel, points: Points, training: Objective) -> dict[str, str]:
    """What scores depend on, by the names that errors use."""
    depends_on = model.fingerprints()
    same = training.batches.data is model.objective.batches.data
    scored = depends_on["training data"] if same else fingerprint.of_examples(training)
    return {
        **depends_on,
        "solver": repr(model.inverse.solver),
        "training loss": fingerprint.of_function(training.loss),
        "scored data": scored,
        **points.fingerprints(),
    }
