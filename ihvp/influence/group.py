"""What removing training examples does to the parameters: to first order, or by one Newton step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.data import Examples
from ihvp.errors import InvalidOption
from ihvp.influence.blocks import counted_blocks
from ihvp.influence.gradients import gradients
from ihvp.influence.scores import Scores
from ihvp.influence.trained import TrainedModel
from ihvp.objective import Objective
from ihvp.operators.curvature import CurvatureOperator
from ihvp.progress import track
from ihvp.solvers.solve import Inverse, solve


def removal_scores(
    model: TrainedModel,
    indices: Any,
    test_data: Any,
    test_loss: Callable[..., Any] | None,
    second_order: bool,
    progress: bool | None,
) -> Scores:
    """The rise of the loss at test points, for :meth:`ihvp.Influence.group`."""
    training = model.training()
    groups, several = groups_of(indices, training.num_examples)
    removal = Removal(training, model.inverse, model.total)
    if second_order:
        question = model.question(test_data, test_loss)
        changes, residual = removal.newton_steps(groups, progress)
        slopes = (gradients(question, block, "test").T for block in counted_blocks(question, model.rows))
        values = np.concatenate([algebra.gram(rows, changes) for rows in slopes])
    else:
        points = model.points(test_data, test_loss, progress)
        changes = removal.gradients(groups)
        values = np.concatenate([algebra.gram(x, changes) for _, x in points.blocks(model.rows)])
        residual = points.residual
    values = values.astype(model.dtype)
    return Scores(values if several else values[:, 0], ("test", "group")[: 1 + several], residual)


def groups_of(indices: Any, count: int) -> tuple[list[NDArray[np.intp]], bool]:
    """The groups as arrays of example numbers, and whether there is more than one.

    Raises
    ------
    InvalidOption
        Not integers, out of range, twice in a group, or none at all.
    """
    listed = list(indices) if isinstance(indices, Iterable) else []
    several = any(np.ndim(entry) > 0 for entry in listed)
    groups = [np.asarray(group) for group in (listed if several else [listed])]
    for group in groups:
        valid = group.ndim == 1 and group.size > 0 and group.dtype.kind in "iu"
        if not valid or group.min() < 0 or group.max() >= count or len(np.unique(group)) < group.size:
            raise InvalidOption(
                "indices", group, f"different integers from 0 to {count - 1:,}, or a list of such groups"
            )
        if group.size == count:
            raise InvalidOption("indices", group, "fewer than all training examples")
    return groups, several


class Removal:
    r"""The change of the parameters when the examples U are taken away and the model is trained again.

    To first order it is :math:`\frac1N (H + \lambda I)^{-1} \sum_U \nabla C_i`. One Newton step on what
    remains has the Hessian of what remains,

    .. math:: \Big(H + \lambda I - \frac{1}{N} \sum_U \nabla^2 C_i\Big)^{-1} \frac1N \sum_U \nabla C_i,

    which is exact for quadratic losses: it accounts for the leverage of the examples, and for that they are
    removed together (Basu, You and Feizi, "On second-order group influence functions for black-box
    predictions", ICML 2020, treat its expansion).

    Parameters
    ----------
    objective : Objective
        Over the training examples, with the loss that goes away.
    inverse : Inverse
        ``(H + λI)⁻¹``.
    total : int
        N.
    """

    def __init__(self, objective: Objective, inverse: Inverse, total: int) -> None:
        self._objective, self._inverse, self._total = objective, inverse, total
        self._examples = Examples.of(objective.batches)

    def gradients(self, groups: Sequence[NDArray[np.intp]]) -> Vector:
        """``1/N Σ_U ∇C_i`` of each group, ``(P, n_groups)``."""
        columns = [(len(group) / self._total) * self._on(group).gradient() for group in groups]
        return self._inverse.space.xp.stack(columns, axis=1)

    def newton_steps(self, groups: Sequence[NDArray[np.intp]], progress: bool | None) -> tuple[Vector, float]:
        """The step of each group, ``(P, n_groups)``, and the largest recomputed residual.

        Raises
        ------
        InvalidOption
            The curvature is no mean over examples of which some could be taken away.
        SolverError
            What remains has no definite curvature, or a solve missed its tolerance.
        """
        curvature, damping, solver = self._inverse.operator, self._inverse.damping, self._inverse.solver
        if not isinstance(curvature, CurvatureOperator):
            raise InvalidOption(
                "second_order",
                True,
                "a curvature that knows its examples: a Hessian, GaussNewton or OPG",
            )
        steps, residual = [], 0.0
        with track("Newton steps", len(groups), progress) as advance:
            for group in groups:
                part = self._on(group)
                share = len(group) / self._total
                remaining = curvature - share * type(curvature)(part)
                solution = solve(remaining, share * part.gradient(), damping, solver, progress=False)
                steps.append(solution.x)
                residual = max(residual, float(solution.residual))
                advance(1)
        return self._inverse.space.xp.stack(steps, axis=1), residual

    def _on(self, group: NDArray[np.intp]) -> Objective:
        return self._objective.on(self._examples.rows(group))
