"""Products of training gradients with themselves, by the inverse curvature."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.influence.blocks import blocks_of_all, counted_blocks
from ihvp.influence.curvature import advising
from ihvp.influence.factored import factored_form, layered
from ihvp.influence.gradients import gradients
from ihvp.influence.points import solve_width
from ihvp.influence.scores import Scores
from ihvp.influence.trained import TrainedModel
from ihvp.kronecker.contraction import Contraction
from ihvp.objective import Objective


def self_scores(model: TrainedModel, data: Any, progress: bool | None) -> Scores:
    """``w_i/W ∇C_i · (H + λI)⁻¹ ∇C_i``, for :meth:`ihvp.Influence.self_influence`."""
    model.check()
    values, residual = own_products(model, model.training(data), progress, power=0.5)
    return Scores((values / model.total).astype(model.dtype), ("train",), residual)


def own_products(
    model: TrainedModel, training: Objective, progress: bool | None, *, power: float, squared: bool = False
) -> tuple[NDArray[np.float64], float]:
    """``r · (H + λI)⁻¹ r`` of each row r of the training gradients, over all processes, and the residual.

    ``power`` is that of the rows' weights; ``squared`` asks for ``‖(H + λI)⁻¹ r‖²``.
    """
    values, residual = np.zeros(training.total_examples), 0.0
    operator = None if squared else factored_form(model, training)
    if operator is not None:
        contraction = Contraction(operator, model.inverse.damping, 0)
        with training.space.processes.track("Self-influence", len(values), progress) as advance:
            for block in counted_blocks(training, model.rows):
                rows = layered(contraction, training, block, "training", power=power)
                first = training.first + block.first
                values[first : first + block.count] = contraction.own_products(rows)
                advance(block.count)
        return training.processes.join(values), contraction.tolerance
    with training.space.processes.track("Self-influence", len(values), progress) as advance:
        for first, count, own in blocks_of_all(training, solve_width(model.inverse, len(values))):
            columns = training.space.zeros(count)
            if own is not None:
                columns = gradients(training, own, "training", power=power).T
            columns = training.processes.reduce(columns)
            with advising(training, model.inverse):
                solution = model.inverse.solve(columns, progress=False)
            values[first : first + count] = algebra.dots(solution.x if squared else columns, solution.x)
            residual = max(residual, float(np.max(solution.residual)))
            advance(count)
    return values, residual
