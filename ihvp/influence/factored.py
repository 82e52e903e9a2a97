"""Influence by Kronecker factors, for which no gradient of an example is ever formed."""

from __future__ import annotations

from typing import Any

import array_api_compat

from ihvp.backend import Vector
from ihvp.errors import NonFinite
from ihvp.influence.blocks import Block
from ihvp.influence.gradients import loss_on, non_finite
from ihvp.influence.points import Points, Unsolved
from ihvp.influence.trained import TrainedModel
from ihvp.kronecker import KFAC
from ihvp.kronecker.blocks import KroneckerBlock
from ihvp.kronecker.contraction import Contraction, Rows, formed, is_loss_of
from ihvp.kronecker.dual import DualInverse, dual_inverse
from ihvp.objective import Objective
from ihvp.operators import GaussNewton
from ihvp.solvers import Auto, ClosedForm
from ihvp.solvers.tolerances import relative_tolerance


def contraction_of(
    model: TrainedModel, points: Points, training: Objective
) -> Contraction | DualInverse | None:
    """The products of gradients by layers, where everything asked for has a factored form; None elsewhere."""
    if not isinstance(points, Unsolved):
        return None
    inverse, losses = model.inverse, (training, points.question)
    if isinstance(inverse.operator, GaussNewton) and isinstance(inverse.solver, Auto):
        own = inverse.operator.objective
        if not all(is_loss_of(loss, own.predict) for loss in losses):
            return None
        return dual_inverse(
            inverse.operator, inverse.damping, relative_tolerance(inverse.solver.rtol, inverse.space)
        )
    operator = factored_form(model, *losses)
    if operator is None:
        return None
    return Contraction(operator, inverse.damping, points.count * training.num_examples)


def factored_form(model: TrainedModel, *losses: Objective) -> KFAC | None:
    """The factors by which gradients of these losses may be multiplied layer by layer; None where not."""
    operator = model.inverse.operator
    if (
        isinstance(operator, KFAC)
        and isinstance(model.inverse.solver, ClosedForm)
        and all(isinstance(block, KroneckerBlock) for block in operator.blocks)
        and all(is_loss_of(loss, operator.predict) for loss in losses)
        and not operator.is_singular(model.inverse.damping)
    ):
        return operator
    return None


def layered(
    contraction: Contraction | DualInverse, objective: Objective, block: Block, what: str, power: float
) -> list[Any]:
    """The gradients of a block's examples, layer by layer.

    ``power`` and errors are those of :func:`~ihvp.influence.gradients.gradients`.
    """
    parts = []
    for batch in block.batches:
        try:
            with loss_on(what, batch):
                parts.append(contraction.rows(objective, batch, power))
        except NonFinite as error:
            raise non_finite(block, what) from error
    return parts[0] if len(parts) == 1 else [_joined(list(layer)) for layer in zip(*parts, strict=True)]


def _joined(parts: list[Rows]) -> Rows:
    if all(isinstance(part, tuple) for part in parts):
        left, right = ([part[side] for part in parts] for side in (0, 1))
        return _stacked(left), _stacked(right)
    # In ragged data one place may use the weights for some examples, and many for others.
    return _stacked([formed(part) for part in parts])


def _stacked(parts: list[Vector]) -> Vector:
    return array_api_compat.array_namespace(parts[0]).concat(parts, axis=0)
