"""Scores in parts, by layers or parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ihvp import algebra
from ihvp.influence.allocation import allocate
from ihvp.influence.blocks import counted_blocks, tile_columns
from ihvp.influence.gradients import gradients
from ihvp.influence.points import Points
from ihvp.influence.scores import Scores
from ihvp.influence.trained import TrainedModel
from ihvp.objective import Objective
from ihvp.progress import track


def scores_in_parts(
    model: TrainedModel,
    points: Points,
    training: Objective,
    parts: Mapping[str, Sequence[slice]],
    progress: bool | None,
) -> dict[str, Scores]:
    """``1/N Σ_b ∇C_i[b] · x_j[b]`` over the places b of each part, for :meth:`ihvp.Influence.scores_by`."""
    shape, before = (len(parts), points.count, training.total_examples), training.first
    values = allocate(shape, model.dtype, "The scores of all parts", "Pass fewer test or training points.")
    columns = tile_columns(training.num_params, training.num_examples)
    with track(
        "Influence", points.count * training.num_examples, progress, training.space.processes.rank
    ) as advance:
        for row, x in points.blocks(model.rows):
            for block in counted_blocks(training, columns):
                rows = gradients(training, block, "training")
                column = before + block.first
                tile = values[:, row : row + x.shape[1], column : column + block.count]
                for part, places in zip(tile, parts.values(), strict=True):
                    part[:] = sum(algebra.gram(x[place], rows[:, place].T) for place in places) / model.total
                advance(block.count * x.shape[1])
    training.processes.join(values)
    return {
        name: Scores(part, ("test", "train"), points.residual)
        for name, part in zip(parts, values, strict=True)
    }
