"""Which parameters belong to a layer that was seen whole, and the curvature of those that do not."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from math import prod
from typing import Any

import array_api_compat
import numpy as np

from ihvp import algebra
from ihvp.backend import (
    Batch,
    Loss,
    OpenModel,
    SupportsBlocks,
    SupportsLayers,
    SupportsPerExampleGrads,
    Vector,
)
from ihvp.data import Batches, Examples, as_data, count_examples, take_examples
from ihvp.errors import InvalidOption
from ihvp.kronecker.factors import with_bias
from ihvp.layers import Layer
from ihvp.objective import Objective

# So many examples tell whether a layer is seen whole.
_EXAMPLES = 16
# A parameter without a layer has a block of its own up to this size, and its diagonal beyond.
EXACT = 1024
# Rounding in half precision is up to such a part of a gradient.
_HALF_PRECISION = 0.05
_ELSEWHERE = "its weights reach the outputs on another way, too"
_ROUNDED = (
    "it computes in less precision than its weights have, or they reach the outputs on another way, too"
)
# Gradients of single examples hold at most so many numbers at once, unless one cotangent takes more.
_NUMBERS = 1 << 22


def opened(objective: Objective, predict: Callable[..., Any], batch: Batch) -> OpenModel:
    """The model on a batch; an InvalidOption where an array of the outputs has no first axis of examples."""
    backend, count = objective.backend, count_examples(batch)
    assert isinstance(backend, SupportsLayers)
    model = backend.open(predict, objective.params, batch)
    for shape in model.shapes:
        if shape[:1] != (count,):
            raise InvalidOption(
                "predict",
                predict,
                f"outputs with the {count} examples along the first axis of each array; found shape {shape}",
            )
    return model


def require_used(names: Iterable[str], found: Container[str], predict: Callable[..., Any]) -> None:
    """Refuse a batch on which the model did not use some of its layers."""
    if missing := sorted(name for name in names if name not in found):
        expected = f"a model with the same layers on every batch; one did not use {', '.join(missing)}"
        raise InvalidOption("predict", predict, expected)


def complete_layers(
    objective: Objective, predict: Callable[..., Any], batch: Batch
) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers whose weights reach the outputs only through them, by name, and why others do not count.

    ``Σ_s g aᵀ`` is compared with the derivative by the weights, for random cotangents of the outputs of all
    examples, and of the first one's alone, which shows whether rows belong to their examples.
    """
    backend = objective.backend
    assert isinstance(backend, SupportsLayers)
    count = count_examples(batch)
    if count > _EXAMPLES:
        batch = take_examples(batch, 0, _EXAMPLES)
    elif count == 1 and batch is not None:
        # What all examples share cannot be told from what one has.
        batch = Examples.of(Batches(as_data(batch))).rows(np.zeros(2, dtype=np.intp))
    model = opened(objective, predict, batch)
    loss, random = backend.cotangent_loss(predict), np.random.default_rng(0)
    arrays = [random.standard_normal(shape) for shape in model.shapes]
    alone = [
        np.where(np.arange(len(array)).reshape(-1, *[1] * (array.ndim - 1)) == 0, array, 0)
        for array in arrays
    ]
    refused: dict[str, str] = {}
    like = model.outputs()
    for chosen, first in ((arrays, None), (alone, 1)):
        flat = np.concatenate([array.reshape(-1) for array in chosen])
        cotangent = algebra.as_like(flat, like)
        expected = backend.grad(loss, objective.params, (batch, split_outputs(model, cotangent)))
        pulled = model.pull_back(cotangent[None])
        for layer, inputs, gradient in zip(model.layers, model.inputs, pulled, strict=True):
            found = weight_gradient(layer, inputs[:first], gradient[0, :first])
            size = max(float(algebra.norms(expected[part])) for part in layer.slices)
            difference = max(
                float(algebra.norms(mine[:, 0] - expected[part]))
                for part, mine in zip(layer.slices, found, strict=True)
            )
            if not difference <= objective.space.product_eps**0.5 * size:
                rounded = difference <= _HALF_PRECISION * size
                refused.setdefault(layer.name, _ROUNDED if rounded else _ELSEWHERE)
    refused |= _overlapping(model, objective.num_params)
    return {layer.name: layer for layer in model.layers if layer.name not in refused}, refused


def _overlapping(model: OpenModel, size: int) -> dict[str, str]:
    taken = np.zeros(size, dtype=np.int8)
    for layer in model.layers:
        for part in layer.slices:
            taken[part] += 1
    return {
        layer.name: "its weights are those of another layer, too"
        for layer in model.layers
        if any(np.any(taken[part] > 1) for part in layer.slices)
    }


def weight_gradient(layer: Layer, inputs: Vector, gradient: Vector) -> list[Vector]:
    """``Σ_n Σ_s g aᵀ`` for ``gradient`` of shape ``(B, S, groups, d_out)``, as :meth:`Layer.parts`."""
    xp = array_api_compat.array_namespace(gradient)
    if layer.one_hot:
        g = algebra.to_numpy(gradient).reshape(-1, layer.d_out)
        total = np.zeros((layer.d_in, layer.d_out), g.dtype)
        np.add.at(total, algebra.to_numpy(inputs).ravel(), g)
        return layer.parts(xp.asarray(total.T[None, None], device=algebra.device(gradient)))
    return _weight_gradient(gradient, inputs, layer)


@algebra.fused(fixed=(2,))
def _weight_gradient(gradient: Vector, inputs: Vector, layer: Layer) -> list[Vector]:
    xp, g = array_api_compat.array_namespace(gradient), _by_group(gradient)
    return layer.parts((xp.matrix_transpose(g) @ _by_group(with_bias(layer, inputs)))[None])


def _by_group(rows: Vector) -> Vector:
    """``(B, S, groups, d)`` as ``(groups, B S, d)``."""
    xp = array_api_compat.array_namespace(rows)
    return xp.reshape(xp.permute_dims(rows, (2, 0, 1, 3)), (rows.shape[2], -1, rows.shape[3]))


def split_outputs(model: OpenModel, flat: Vector) -> list[Vector]:
    """``(F,)`` as arrays in the shapes of those that the model returned."""
    xp, start, parts = array_api_compat.array_namespace(flat), 0, []
    for shape in model.shapes:
        parts.append(xp.reshape(flat[start : start + prod(shape)], shape))
        start += prod(shape)
    return parts


class Remainder:
    """The parameters that no layer covers, and their part of the curvature, summed batch by batch."""

    def __init__(self, objective: Objective, predict: Callable[..., Any], covered: Sequence[Layer]) -> None:
        self._objective, self._predict = objective, predict
        free = np.ones(objective.num_params, dtype=bool)
        for layer in covered:
            for part in layer.slices:
                free[part] = False
        self.places = _named(objective, free, {layer.name for layer in covered})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of what is summed for each: a matrix, or its diagonal."""
        sizes = {name: place.stop - place.start for name, place in self.places.items()}
        return {name: (size, size) if size <= EXACT else (size,) for name, size in sizes.items()}

    def add(
        self, batch: Batch, model: OpenModel, cotangents: Vector, share: float, sums: dict[str, Vector]
    ) -> None:
        """Add the part of a batch's cotangents ``(V, F)`` to the sums."""
        if not self.places:
            return
        for rows in cotangent_rows(self._objective, self._predict, batch, model, cotangents):
            for name, place in self.places.items():
                part = rows[:, place]
                size = place.stop - place.start
                sums[name] += share * (part.T @ part if size <= EXACT else (part**2).sum(axis=0))


def cotangent_rows(
    objective: Objective, predict: Callable[..., Any], batch: Batch, model: OpenModel, cotangents: Vector
) -> Iterator[Vector]:
    """For each of the cotangents ``(V, F)`` the derivatives of ``⟨c, outputs⟩`` by example, ``(B, P)``."""
    backend, count = objective.backend, count_examples(batch)
    assert isinstance(backend, SupportsLayers)
    loss = backend.cotangent_loss(predict)
    # Of a small batch several copies are taken at once, one for each cotangent.
    at_once = max(1, _NUMBERS // (count * objective.num_params))
    for start in range(0, len(cotangents), at_once):
        parts = [split_outputs(model, cotangent) for cotangent in cotangents[start : start + at_once]]
        copies, joined = batch, parts[0]
        if len(parts) > 1:
            numbers = np.tile(np.arange(count), len(parts))
            copies = Examples.of(Batches(as_data(batch))).rows(numbers)
            joined = [objective.space.xp.concat(arrays, axis=0) for arrays in zip(*parts, strict=True)]
        rows = _rows(objective, loss, (copies, joined))
        for number in range(len(parts)):
            yield rows[number * count : (number + 1) * count, :]


def _rows(objective: Objective, loss: Loss, batch: Batch) -> Vector:
    backend = objective.backend
    if isinstance(backend, SupportsPerExampleGrads):
        return backend.per_example_grads(loss, objective.params, batch)
    single = (take_examples(batch, i, i + 1) for i in range(count_examples(batch)))
    return objective.space.xp.stack([backend.grad(loss, objective.params, one) for one in single], axis=0)


def _named(objective: Objective, free: np.ndarray, taken: set[str]) -> dict[str, slice]:
    """The free entries of each array of the parameters; names that are layers' too are ``taken``."""
    backend = objective.backend
    blocks = {"parameters": slice(0, objective.num_params)}
    if isinstance(backend, SupportsBlocks):
        blocks = dict(backend.blocks(objective.params))
    found = {}
    for name, place in blocks.items():
        edges = np.flatnonzero(np.diff(np.concatenate([[False], free[place], [False]]).astype(np.int8)))
        pairs = edges.reshape(-1, 2) + place.start
        for start, stop in pairs:
            whole = len(pairs) == 1 and name not in taken
            label = name if whole else f"{name}[{start - place.start}:{stop - place.start}]"
            found[label] = slice(int(start), int(stop))
    return found
