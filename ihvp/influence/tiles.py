"""The scores, tile by tile: inverse products of test points against streamed training gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from numpy.typing import NDArray

from ihvp import fingerprint
from ihvp.backend import Vector
from ihvp.influence.blocks import Block, counted_blocks, tile_columns
from ihvp.influence.factored import contraction_of, rotated
from ihvp.influence.gradients import derivatives_along
from ihvp.influence.points import Points, Unsolved
from ihvp.influence.store import Store
from ihvp.influence.trained import TrainedModel
from ihvp.kronecker.contraction import Contraction
from ihvp.kronecker.dual import DualInverse
from ihvp.objective import Objective
from ihvp.progress import track

Tile = tuple[int, int, NDArray[Any]]
"""The number of the first test point, that of the first training example, and their scores ``(k, b)``."""
Products = Callable[[Block], NDArray[Any]]
"""``∇C_i · x_j`` of some test points j and the training examples i of a block."""


def tiles(
    model: TrainedModel,
    points: Points,
    training: Objective,
    progress: bool | None,
    store: Store | None = None,
) -> Iterator[Tile]:
    """``1/N ∇C_i · x_j`` of this process's examples and all test points; of a store, the tiles it lacks."""
    before = training.first
    columns = tile_columns(training.num_params, training.num_examples)
    with track(
        "Influence", points.count * training.num_examples, progress, training.space.processes.rank
    ) as advance:
        for row, count, products in _queries(model, points, training, store):
            for block in counted_blocks(training, columns):
                column = before + block.first
                if store is None or (row, column, count, block.count) not in store.done:
                    yield row, column, (products(block) / model.total).astype(model.dtype)
                advance(block.count * count)


def _queries(
    model: TrainedModel, points: Points, training: Objective, store: Store | None
) -> Iterator[tuple[int, int, Products]]:
    """The number of a block's first test point, how many it has, and what gives their products ``(k, b)``."""
    contraction = contraction_of(model, points, training)
    if contraction is None:
        for row, x in points.blocks(model.rows, store):
            yield row, x.shape[1], partial(_along, training, x)
        return
    assert isinstance(points, Unsolved)
    for asked in counted_blocks(points.question, model.rows):
        left = rotated(contraction, points.question, asked, "test", power=0)
        if contraction.solves(left):
            points.residual = max(points.residual, contraction.tolerance)
            products: Products = partial(_contracted, contraction, training, left)
        else:
            products = partial(_along, training, points.solved(asked, store))
        yield asked.first, asked.count, products


def _along(training: Objective, x: Vector, block: Block) -> NDArray[Any]:
    return derivatives_along(training, block, x, "training").T


def _contracted(
    contraction: Contraction | DualInverse, training: Objective, left: list[Any], block: Block
) -> NDArray[Any]:
    return contraction.products(left, rotated(contraction, training, block, "training", power=1))


def terms(model: TrainedModel, points: Points, training: Objective) -> dict[str, str]:
    """What scores depend on, by the names that errors use."""
    depends_on = model.fingerprints()
    same = training.batches.data is model.objective.batches.data
    scored = depends_on["training data"] if same else fingerprint.of_data(training.batches)
    return {
        **depends_on,
        "solver": repr(model.inverse.solver),
        "training loss": fingerprint.of_function(training.loss),
        "scored data": scored,
        **points.fingerprints(),
    }
