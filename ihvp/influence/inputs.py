"""The derivatives of scores by what the training examples consist of."""

from __future__ import annotations

import math
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.algebra import to_numpy
from ihvp.backend import Batch, SupportsInputDerivatives, Vector
from ihvp.data import count_examples, is_array, map_leaves
from ihvp.errors import DataError, WeightError, describe
from ihvp.influence.blocks import Block, rows_at_once
from ihvp.influence.gradients import derivatives_along, loss_on
from ihvp.influence.points import Points, with_training
from ihvp.influence.trained import TrainedModel
from ihvp.memory import allocate
from ihvp.objective import Objective

# So many test points share a pass over a block of training examples.
_POINTS = 16


def influence_on_inputs(
    model: TrainedModel, points: Points, training: Objective, progress: bool | None
) -> Batch:
    """``1/N ∂(∇C_i · x_j)/∂z_i`` for every floating array z of the training examples.

    Arrays are ``(n_test, n_train, *shape)``, in the structure of a training batch. None is in the place of
    what is not made of real floating numbers, and of what the weights are made of, which are fixed. A
    DataError says that there is no such array.
    """
    training.require_examples()
    batch, _ = next(iter(training.batches))
    # Where the weights of one process's examples depend on an array, all leave it out.
    weighing = iter(training.processes.sum(np.array(_weighing(training, batch), np.int64)) > 0)
    entries = training.num_params + sum(math.prod(leaf.shape[1:]) for leaf in _inputs(batch))
    rows = rows_at_once(_POINTS * entries)
    shape = points.count, training.total_examples

    def room_for(leaf: Any) -> NDArray[Any] | None:
        if next(weighing) or not _is_input(leaf):
            return None
        return allocate(
            (*shape, *leaf.shape[1:]),
            model.dtype,
            "The array of all derivatives",
            "Pass fewer test points, or as train_data the training points that matter.",
        )

    result = map_leaves(room_for, batch)
    for row, x, _, block in with_training(points, training, model.rows, rows, progress):
        for start in range(0, x.shape[1], _POINTS):
            _write(training, block, x[:, start : start + _POINTS] / model.total, result, row + start)
    return map_leaves(lambda array: None if array is None else training.processes.join(array), result)


def _write(training: Objective, block: Block, x: Vector, result: Batch, row: int) -> None:
    """Write the derivatives of a block's examples into ``result``, from ``row`` on."""
    first = block.first
    for batch in block.batches:
        count = count_examples(batch)
        column = training.first + first
        place = slice(row, row + x.shape[1]), slice(column, column + count)

        def put(array: NDArray[Any] | None, part: NDArray[Any] | None, place: Any = place) -> None:
            if array is not None:
                array[place] = part

        map_leaves(put, result, input_derivatives(training, batch, first, x))
        first += count


def input_derivatives(objective: Objective, batch: Batch, first: int, x: Vector) -> Batch:
    r"""The derivatives of ``N w_i / W ∇C_i · x_j`` by the floating arrays of example i, at fixed weights.

    Backends that cannot differentiate by the data take central differences, all examples of the batch at once
    and one coordinate after another: two gradients of every example for each coordinate. The step is a power
    of two near :math:`\varepsilon^{1/3} (1 + |z|) / 10`, so that the error is about
    :math:`10 \varepsilon^{2/3}` of the gradient's change over a unit of z where the loss is smooth, with the
    coarser ε of the parameters and of z.

    ``first`` is the number of the batch's first example, and x is ``(P, k)``. The result has the structure of
    ``batch``: numpy arrays ``(k, B, *shape)``, and None.
    """
    backend = objective.backend
    if not isinstance(backend, SupportsInputDerivatives):
        return _differences(objective, batch, first, x)
    with loss_on("training", batch):
        objective.require_additive(batch)
        found = backend.input_derivatives(objective.loss, objective.params, batch, x)
    # An example is the part w_i / W_batch of the batch's gradient, and w_i / W is asked for, N times.
    weights = objective.weighting.of(batch, count_examples(batch))
    factor = (weights.sum() if objective.reduction == "mean" else 1) / objective.mean_weight

    def scaled(_: Any, part: Any) -> Any:
        if part is None:
            return None
        values = to_numpy(part)
        # Of an example that weighs nothing the loss may be the quotient of two zeros.
        return factor * np.where((weights > 0).reshape(1, -1, *[1] * (values.ndim - 2)), values, 0)

    return map_leaves(scaled, batch, found)


def _differences(objective: Objective, batch: Batch, first: int, x: Vector) -> Batch:
    leaves = _leaves(batch)
    count, epsilon = count_examples(batch), objective.space.product_eps
    objective.require_additive(batch)
    if objective.weighting.function is not None:
        objective = objective.with_fixed_weights(batch)

    def products_at(place: int, values: NDArray[Any]) -> NDArray[np.float64]:
        changed = [*leaves[:place], _like(leaves[place], values), *leaves[place + 1 :]]
        block = Block(first, [_filled(batch, changed)], count)
        return derivatives_along(objective, block, x, "training")

    def derivative(place: int) -> NDArray[np.float64]:
        values = to_numpy(leaves[place])
        coarser = max(epsilon, float(np.finfo(values.dtype).eps))
        result = np.empty((x.shape[1], *values.shape))
        for coordinate in np.ndindex(values.shape[1:]):
            at = (slice(None), *coordinate)
            lengths = 0.1 * coarser ** (1 / 3) * (1 + np.abs(values[at], dtype=np.float64))
            step = np.exp2(np.floor(np.log2(lengths)))
            above, below = values.copy(), values.copy()
            above[at] += step
            below[at] -= step
            # What the points differ by after rounding, exactly.
            moved = above[at].astype(np.float64) - below[at]
            change = products_at(place, above) - products_at(place, below)
            result[(slice(None), *at)] = (change / moved[:, None]).T
        return result

    return _filled(batch, [derivative(i) if _is_input(leaf) else None for i, leaf in enumerate(leaves)])


def _weighing(objective: Objective, batch: Batch) -> list[bool]:
    """Which arrays of a batch the weights of its examples are made of, such as sample weights, or a mask."""
    leaves = _leaves(batch)
    if objective.weighting.function is None:
        return [False] * len(leaves)
    count = count_examples(batch)
    weights = objective.weighting.of(batch, count)

    def depend_on(place: int) -> bool:
        if not _is_input(leaves[place]):
            return False
        changed = _like(leaves[place], 1.5 * to_numpy(leaves[place]) + 1)
        other = _filled(batch, [*leaves[:place], changed, *leaves[place + 1 :]])
        try:
            return not np.array_equal(objective.weighting.of(other, count), weights)
        except WeightError:
            return True

    return [depend_on(place) for place in range(len(leaves))]


def _inputs(batch: Batch) -> list[Any]:
    """The arrays of a batch that consist of real floating numbers."""
    found = [leaf for leaf in _leaves(batch) if _is_input(leaf)]
    if not found:
        raise DataError(
            f"A batch of the training data is {describe(batch)} and holds no array of floating numbers; "
            "expected one to differentiate by. Pass integers that stand for numbers as such: x.astype(float)."
        )
    return found


def _leaves(batch: Batch) -> list[Any]:
    found: list[Any] = []
    map_leaves(found.append, batch)
    return found


def _filled(batch: Batch, leaves: list[Any]) -> Batch:
    following = iter(leaves)
    return map_leaves(lambda _: next(following), batch)


def _is_input(leaf: Any) -> bool:
    if not is_array(leaf):
        return False
    if array_api_compat.is_array_api_obj(leaf):
        xp = array_api_compat.array_namespace(leaf)
        return bool(xp.isdtype(leaf.dtype, "real floating"))
    return np.asarray(leaf).dtype.kind == "f"


def _like(leaf: Any, values: NDArray[Any]) -> Any:
    """``values`` in the array type of ``leaf`` and on its device; numpy's where it has no standard one."""
    if not array_api_compat.is_array_api_obj(leaf) or isinstance(leaf, np.ndarray):
        return values
    xp = array_api_compat.array_namespace(leaf)
    return xp.asarray(values, device=algebra.device(leaf))
