"""The scores, tile by tile: inverse products of test points against streamed training gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from ihvp.backend import Vector
from ihvp.influence import fingerprint
from ihvp.influence.blocks import counted_blocks, tile_columns
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


def tiles(
    model: TrainedModel,
    points: Points,
    training: Objective,
    progress: bool | None,
    store: Store | None = None,
) -> Iterator[Tile]:
    """``1/N ∇C_i · x_j`` of all training examples and test points; of a store, the tiles that it lacks."""
    columns = tile_columns(training.num_params, training.num_examples)
    contraction = contraction_of(model, points, training)
    if contraction is not None:
        assert isinstance(points, Unsolved)
        yield from _contracted(contraction, model, points, training, progress, store)
        return
    with track("Influence", points.count * training.num_examples, progress) as advance:
        for row, x in points.blocks(model.rows, store):
            for block in counted_blocks(training, columns):
                if store is None or (row, block.first, x.shape[1], block.count) not in store.done:
                    tile = derivatives_along(training, block, x, "training").T / model.total
                    yield row, block.first, tile.astype(model.dtype)
                advance(block.count * x.shape[1])


def _contracted(
    contraction: Contraction | DualInverse,
    model: TrainedModel,
    points: Unsolved,
    training: Objective,
    progress: bool | None,
    store: Store | None,
) -> Iterator[Tile]:
    columns = tile_columns(training.num_params, training.num_examples)
    question = points.question
    with track("Influence", question.num_examples * training.num_examples, progress) as advance:
        for asked in counted_blocks(question, model.rows):
            left = rotated(contraction, question, asked, "test", power=0)
            x: Vector = None
            if not contraction.solves(left):
                x = points.solved(asked, store)
            for block in counted_blocks(training, columns):
                if store is None or (asked.first, block.first, asked.count, block.count) not in store.done:
                    if x is None:
                        right = rotated(contraction, training, block, "training", power=1)
                        tile = contraction.products(left, right) / model.total
                        points.residual = max(points.residual, contraction.tolerance)
                    else:
                        tile = derivatives_along(training, block, x, "training").T / model.total
                    yield asked.first, block.first, tile.astype(model.dtype)
                advance(block.count * asked.count)


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
