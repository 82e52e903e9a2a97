"""Scores in parts: by layers or parameters, and by the places of a model's outputs, the tokens of texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Batch, SupportsPushForward, Vector, capabilities_of
from ihvp.errors import InvalidOption, MissingCapability
from ihvp.influence.blocks import NUMBERS, counted_blocks, tile_columns
from ihvp.influence.gradients import gradients, loss_on, non_finite
from ihvp.influence.points import Points, with_training
from ihvp.influence.scores import Scores
from ihvp.influence.trained import TrainedModel
from ihvp.kronecker.coverage import opened, split_outputs
from ihvp.memory import allocate
from ihvp.objective import Objective
from ihvp.weighting import scale_rows


def scores_in_parts(
    model: TrainedModel,
    points: Points,
    training: Objective,
    parts: Mapping[str, Sequence[slice]],
    progress: bool | None,
) -> dict[str, Scores]:
    """``1/N Σ_b ∇C_i[b] · x_j[b]`` over the places b of each part, for :meth:`ihvp.Influence.scores_by`."""
    shape = len(parts), points.count, training.total_examples
    values = allocate(shape, model.dtype, "The scores of all parts", "Pass fewer test or training points.")
    columns = tile_columns(training.num_params, training.num_examples)
    for row, x, column, block in with_training(points, training, model.rows, columns, progress):
        rows = gradients(training, block, "training")
        tile = values[:, row : row + x.shape[1], column : column + block.count]
        for part, places in zip(tile, parts.values(), strict=True):
            part[:] = sum(algebra.gram(x[place], rows[:, place].T) for place in places) / model.total
    return named_scores(parts, training.processes.join(values), points.residual)


def named_scores(names: Iterable[str], values: NDArray[Any], residual: float) -> dict[str, Scores]:
    """Scores ``(parts, n_test, n_train)`` by the names of their parts."""
    return {name: Scores(part, ("test", "train"), residual) for name, part in zip(names, values, strict=True)}


def scores_by_token(
    model: TrainedModel, points: Points, training: Objective, progress: bool | None
) -> Scores:
    """``1/N Σ_v ∂C_i/∂outputs[i, t, v] (J x_j)[i, t, v]``, for :meth:`ihvp.Influence.scores_by`."""
    training.require_predict()
    for capability in sorted({"layers", "push_forward"} - capabilities_of(training.backend)):
        name = type(training.backend).__name__
        raise MissingCapability(name, capability, "Scores by token are products with a model's Jacobian.")
    values = np.zeros((points.count, training.total_examples, 0), model.dtype)
    # A model without places is refused before anything is solved, and scores that do not fit mostly are.
    columns = tile_columns(training.num_params, training.num_examples)
    if first := next(counted_blocks(training, columns), None):
        values = _with_room(values, _output_gradients(training, first.batches[0])[0].shape[1])
    for row, x, column, block in with_training(points, training, model.rows, columns, progress):
        for batch in block.batches:
            tile = _products(training, batch, x) / model.total
            if not np.all(np.isfinite(tile)):
                raise non_finite(block, "training")
            count, length = tile.shape[1:]
            values = _with_room(values, length)
            values[row : row + len(tile), column : column + count, :length] = tile
            column += count
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
