"""The influence of training examples on their own losses."""

from __future__ import annotations

from typing import Any

import numpy as np

from ihvp import algebra
from ihvp.influence.advice import advising
from ihvp.influence.blocks import blocks_of_all, counted_blocks
from ihvp.influence.factored import has_factored_form, rotated
from ihvp.influence.gradients import gradients
from ihvp.influence.points import solve_width
from ihvp.influence.scores import Scores
from ihvp.influence.trained import TrainedModel
from ihvp.kronecker import KFAC
from ihvp.kronecker.contraction import Contraction
from ihvp.progress import track


def self_scores(model: TrainedModel, data: Any, progress: bool | None) -> Scores:
    """``w_i/W ∇C_i · (H + λI)⁻¹ ∇C_i``, for :meth:`ihvp.Influence.self_influence`."""
    model.check()
    training = model.training(data)
    values, residual = np.zeros(training.total_examples, model.dtype), 0.0
    if has_factored_form(model, training):
        operator = model.inverse.operator
        assert isinstance(operator, KFAC)
        contraction = Contraction(operator, model.inverse.damping, 0)
        with track("Self-influence", len(values), progress, training.space.processes.rank) as advance:
            for block in counted_blocks(training, model.rows):
                rows = rotated(contraction, training, block, "training", power=0.5)
                found = contraction.own_products(rows) / model.total
                first = training.first + block.first
                values[first : first + block.count] = found
                advance(block.count)
        return Scores(training.processes.join(values), ("train",), contraction.tolerance)
    with track("Self-influence", len(values), progress, training.space.processes.rank) as advance:
        for first, count, own in blocks_of_all(training, solve_width(model.inverse, len(values))):
            columns = training.space.zeros(count)
            if own is not None:
                columns = gradients(training, own, "training", power=0.5).T
            columns = training.processes.reduce(columns)
            with advising(training, model.inverse):
                solution = model.inverse.solve(columns, progress=False)
            values[first : first + count] = algebra.dots(columns, solution.x) / model.total
            residual = max(residual, float(np.max(solution.residual)))
            advance(count)
    return Scores(values, ("train",), residual)
