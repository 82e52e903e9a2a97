"""What removing training examples does to the parameters: to first order, or by one Newton step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.arguments import check_flag, is_special
from ihvp.backend import Batch, Vector
from ihvp.data import Batches, Examples, as_data, count_examples
from ihvp.errors import InvalidOption
from ihvp.influence.blocks import counted_blocks, tile_columns
from ihvp.influence.gradients import gradients
from ihvp.influence.scores import Scores
from ihvp.influence.trained import TrainedModel
from ihvp.memory import allocate
from ihvp.objective import Objective
from ihvp.operators.curvature import CurvatureOperator
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
    check_flag("second_order", second_order)
    training = model.training()
    groups, several = groups_of(indices, training.total_examples)
    removal = Removal(training, model.inverse, model.total)
    # So many groups have their changes of the parameters held at a time.
    parts = {first: groups[first : first + model.rows] for first in range(0, len(groups), model.rows)}
    if second_order:
        question = model.question(test_data, test_loss)
        values, residual = _room(model, question.num_examples, len(groups)), 0.0
        with training.space.processes.track("Newton steps", len(groups), progress) as advance:
            for first, part in parts.items():
                steps, largest = removal.newton_steps(part, advance)
                for block in counted_blocks(question, model.rows):
                    slopes = gradients(question, block, "test", power=0).T
                    _put(values, block.first, first, algebra.gram(slopes, steps))
                residual = max(residual, largest)
    else:
        points = model.points(test_data, test_loss, progress)
        values = _room(model, points.count, len(groups))
        # Where all groups are one part, all blocks of test points share it.
        changes = functools.lru_cache(maxsize=1)(lambda first: removal.gradients(parts[first]))
        for row, x in points.blocks(model.rows):
            for first in parts:
                _put(values, row, first, algebra.gram(x, changes(first)))
        residual = points.residual
    return Scores(values if several else values[:, 0], ("test", "group")[: 1 + several], residual)


def _room(model: TrainedModel, tests: int, groups: int) -> NDArray[Any]:
    advice = "Pass fewer test points or fewer groups."
    return allocate((tests, groups), model.dtype, "The array of all scores", advice)


def _put(values: NDArray[Any], row: int, column: int, tile: NDArray[Any]) -> None:
    values[row : row + tile.shape[0], column : column + tile.shape[1]] = tile


def groups_of(indices: Any, count: int) -> tuple[list[NDArray[np.intp]], bool]:
    """The groups as arrays of example numbers, and whether there is more than one."""
    expected = f"different integers from 0 to {count - 1:,}, or a list of such groups"
    try:
        listed = [] if is_special(indices) else list(indices)
        several = any(np.ndim(entry) > 0 for entry in listed)
        groups = [np.asarray(group) for group in (listed if several else [listed])]
    except Exception as error:  # what cannot be listed, or numpy cannot read
        raise InvalidOption("indices", indices, expected) from error
    for group in groups:
        valid = group.ndim == 1 and group.size > 0 and group.dtype.kind in "iu"
        if not valid or group.min() < 0 or group.max() >= count or len(np.unique(group)) < group.size:
            raise InvalidOption("indices", group, expected)
        if group.size == count:
            raise InvalidOption("indices", group, "fewer than all training examples")
    return groups, several


class Removal:
    r"""The change of the parameters when the examples U are taken away and the model is trained again.

    To first order it is :math:`\frac1W (H + \lambda I)^{-1} \sum_U w_i \nabla C_i`. One Newton step on what
    remains has the Hessian of what remains,

    .. math:: \Big(H + \lambda I - \frac{1}{W} \sum_U w_i \nabla^2 C_i\Big)^{-1}
        \frac1W \sum_U w_i \nabla C_i,

    which is exact for quadratic losses: it accounts for the leverage of the examples, and for that they are
    removed together (Basu, You and Feizi, "On second-order group influence functions for black-box
    predictions", ICML 2020, treat its expansion).

    ``objective`` is over the training examples, with the loss that goes away, and ``total`` is N.
    """

    def __init__(self, objective: Objective, inverse: Inverse, total: int) -> None:
        objective.require_additive()
        self._objective, self._inverse, self._total = objective, inverse, total

    def gradients(self, groups: Sequence[NDArray[np.intp]]) -> Vector:
        """``1/W Σ_U w_i ∇C_i`` of each group, ``(P, n_groups)``."""
        return self._inverse.space.xp.stack([self._gradient(part) for part in self._on_each(groups)], axis=1)

    def _gradient(self, part: Objective) -> Vector:
        share = self._share(part)
        return share * part.gradient() if share else part.space.zeros()

    def _share(self, part: Objective) -> float:
        """What the examples of a group weigh among all."""
        return part.overall_weight / (self._total * self._objective.mean_weight)

    def newton_steps(
        self, groups: Sequence[NDArray[np.intp]], advance: Callable[[int], object]
    ) -> tuple[Vector, float]:
        """The step of each group, ``(P, n_groups)``, and the largest recomputed residual.

        A curvature that is no mean over examples is an InvalidOption.
        """
        curvature, damping, solver = self._inverse.operator, self._inverse.damping, self._inverse.solver
        if not isinstance(curvature, CurvatureOperator):
            raise InvalidOption(
                "second_order", True, "a curvature that knows its examples: a Hessian, GaussNewton or OPG"
            )
        steps, residual = [], 0.0
        for part in self._on_each(groups):
            share, change = self._share(part), self._gradient(part)
            # Examples that weigh nothing take no curvature away, and have none.
            remaining = curvature - share * type(curvature)(part) if share else curvature
            solution = solve(remaining, change, damping, solver, progress=False)
            steps.append(solution.x)
            residual = max(residual, float(solution.residual))
            advance(1)
        return self._inverse.space.xp.stack(steps, axis=1), residual

    def _on_each(self, groups: Sequence[NDArray[np.intp]]) -> Iterator[Objective]:
        first, stop = self._objective.first, self._objective.first + self._objective.num_examples
        own = [group[(group >= first) & (group < stop)] - first for group in groups]
        numbers = np.unique(np.concatenate(own))
        examples = _selected(self._objective, numbers) if numbers.size else None
        for group in own:
            # Other processes may have the examples of a group.
            if examples is None or not group.size:
                yield self._objective.on([])
            else:
                yield self._objective.on(as_data(examples.rows(np.searchsorted(numbers, group))))


def _selected(objective: Objective, numbers: NDArray[np.intp]) -> Examples:
    """The examples of these increasing numbers; of data that comes in batches, only they are held."""
    if objective.batches.in_memory:
        return Examples(Examples.of(objective.batches).rows(numbers), len(numbers))
    found: list[Batch] = []
    for block in counted_blocks(objective, tile_columns(objective.num_params, objective.num_examples)):
        first = block.first
        for batch in block.batches:
            stop = first + count_examples(batch)
            here = numbers[(numbers >= first) & (numbers < stop)] - first
            if here.size:
                found.append(Examples.of(Batches([batch])).rows(here))
            first = stop
    return Examples.of(Batches(found))
