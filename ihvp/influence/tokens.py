"""Scores in parts, by the places of a model's outputs: the tokens of texts."""

from __future__ import annotations

from math import prod

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Batch, SupportsPushForward, Vector, capabilities_of
from ihvp.errors import InvalidOption, MissingCapability
from ihvp.influence.allocation import allocate
from ihvp.influence.blocks import NUMBERS, counted_blocks, tile_columns
from ihvp.influence.gradients import loss_on, non_finite
from ihvp.influence.points import Points
from ihvp.influence.scores import Scores
from ihvp.influence.trained import TrainedModel
from ihvp.kronecker.coverage import opened, split_outputs
from ihvp.objective import Objective
from ihvp.progress import track
from ihvp.weighting import scale_rows


def scores_by_token(
    model: TrainedModel, points: Points, training: Objective, progress: bool | None
) -> Scores:
    """``1/N Σ_v ∂C_i/∂outputs[i, t, v] (J x_j)[i, t, v]``, for :meth:`ihvp.Influence.scores_by`."""
    training.require_predict()
    for capability in sorted({"layers", "push_forward"} - capabilities_of(training.backend)):
        name = type(training.backend).__name__
        raise MissingCapability(name, capability, "Scores by token are products with a model's Jacobian.")
    values = np.zeros((points.count, training.total_examples, 0), model.dtype)
    columns, before = tile_columns(training.num_params, training.num_examples), training.first
    # A model without places is refused before anything is solved, and scores that do not fit mostly are.
    if first := next(counted_blocks(training, columns), None):
        values = _with_room(values, _output_gradients(training, first.batches[0])[0].shape[1])
    with track(
        "Influence", points.count * training.num_examples, progress, training.space.processes.rank
    ) as advance:
        for row, x in points.blocks(model.rows):
            for block in counted_blocks(training, columns):
                column = before + block.first
                for batch in block.batches:
                    tile = _products(training, batch, x) / model.total
                    if not np.all(np.isfinite(tile)):
                        raise non_finite(block, "training")
                    count, length = tile.shape[1:]
                    values = _with_room(values, length)
                    values[row : row + len(tile), column : column + count, :length] = tile
                    column += count
                advance(block.count * x.shape[1])
    values = _with_room(values, int(training.processes.each(values.shape[2]).max()))
    return Scores(training.processes.join(values), ("test", "train", "token"), points.residual)


def _with_room(values: NDArray[np.floating], length: int) -> NDArray[np.floating]:
    """The scores with zeros up to a number of tokens."""
    if length <= values.shape[2]:
        return values
    shape = (*values.shape[:2], length)
    longer = allocate(shape, values.dtype, "The scores of all tokens", "Pass fewer test or training points.")
    longer[:, :, : values.shape[2]] = values
    return longer


def _products(objective: Objective, batch: Batch, x: Vector) -> NDArray[np.floating]:
    """``Σ_v ∂C_i/∂outputs[i, t, v] (J x_j)[i, t, v]`` with the weights of the examples, ``(k, B, T)``."""
    backend, (predict, _) = objective.backend, objective.require_predict()
    assert isinstance(backend, SupportsPushForward)
    slopes, parts = _output_gradients(objective, batch), []
    xp = array_api_compat.array_namespace(slopes[0])
    width = max(1, NUMBERS // sum(prod(slope.shape) for slope in slopes))
    for start in range(0, x.shape[1], width):
        with loss_on("training", batch):
            pushed = backend.push_forward(predict, objective.params, batch, x[:, start : start + width])
        total: Vector = 0
        for slope, part in zip(slopes, pushed, strict=True):
            rows = xp.reshape(slope, (*slope.shape[:2], 1, -1))
            columns = xp.reshape(algebra.wide(part), (*slope.shape[:2], rows.shape[3], part.shape[-1]))
            total = total + xp.matmul(rows, columns)[:, :, 0, :]
        parts.append(algebra.to_numpy(total).transpose(2, 0, 1))
    return np.concatenate(parts)


def _output_gradients(objective: Objective, batch: Batch) -> list[Vector]:
    """``N w_i / W ∂C_i/∂outputs`` of each array of the outputs, ``(B, T, …)``."""
    predict, loss = objective.require_predict()
    with loss_on("training", batch):
        objective.require_additive(batch)
        model = opened(objective, predict, batch)
        lengths = {tuple(shape[1:2]) for shape in model.shapes}
        if len(lengths) > 1 or () in lengths:
            found = " and ".join(str(tuple(shape)) for shape in model.shapes)
            raise InvalidOption(
                "predict",
                predict,
                "outputs with the examples along the first axis of each array and the tokens along the "
                f"second, as many in all; found shape {found}",
            )
        slopes = split_outputs(model, algebra.wide(model.output_gradient(loss)))
    factors = objective.part_factors(batch, 1.0)
    return [scale_rows(slope, factors) for slope in slopes]
