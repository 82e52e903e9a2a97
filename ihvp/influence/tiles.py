"""The scores, tile by tile: inverse products of test points against streamed training gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp import fingerprint
from ihvp.backend import Vector
from ihvp.influence.blocks import Block, counted_blocks, tile_columns, windows
from ihvp.influence.factored import contraction_of, layered
from ihvp.influence.gradients import derivatives_along
from ihvp.influence.points import Points, Unsolved
from ihvp.influence.store import Store
from ihvp.influence.trained import TrainedModel
from ihvp.influence.workers import Products, over_workers
from ihvp.kronecker.contraction import Contraction
from ihvp.kronecker.dual import DualInverse
from ihvp.objective import Objective

Tile = tuple[int, int, NDArray[Any]]
"""The number of the first test point, that of the first training example, and their scores ``(k, b)``."""


@dataclass(frozen=True, eq=False)
class Part:
    """The scores at one model, times a factor: a method's scores are the sum of such parts."""

    model: TrainedModel
    points: Points
    training: Objective
    factor: float = 1.0


def tiles(parts: Sequence[Part], progress: bool | None, store: Store | None = None) -> Iterator[Tile]:
    """``Σ_c factor_c / N ∇C_i · x_j`` of this process's examples and all test points, with x_j of each part.

    Of a store, the tiles that it lacks.
    """
    model, points, training = parts[0].model, parts[0].points, parts[0].training
    before, total = training.first, model.total  # which all processes ask for
    columns = tile_columns(training.num_params, training.total_examples)
    with training.space.processes.track(
        "Influence", points.count * training.num_examples, progress
    ) as advance:
        for row, count, products in _queries(parts, store):
            wanted = windows(training, columns)
            if store is not None:
                wanted = store.missing(row, count, wanted, training, advance)
            for block, own, found in over_workers(products, wanted):
                yield row, before + block.first, (found[:, own] / total).astype(model.dtype)
                advance((own.stop - own.start) * count)


def _queries(parts: Sequence[Part], store: Store | None) -> Iterator[tuple[int, int, Products]]:
    """The number of a block's first test point, how many it has, and what gives their products ``(k, b)``."""
    if len(parts) == 1 and parts[0].factor == 1:
        yield from _queries_of(parts[0], parts[0].model.rows, store)
        return
    rows = max(1, parts[0].model.rows // len(parts))
    for found in zip(*(_queries_of(part, rows, None) for part in parts), strict=True):
        row, count, _ = found[0]
        terms = [(part.factor, products) for part, (_, _, products) in zip(parts, found, strict=True)]
        yield row, count, _Sum(parts[0].training.without_data(), terms)


def _queries_of(part: Part, rows: int, store: Store | None) -> Iterator[tuple[int, int, Products]]:
    points, training = part.points, part.training
    each = training.without_data()  # a worker is sent this, and its blocks
    contraction = contraction_of(part.model, points, training)
    if contraction is None:
        for row, x in points.blocks(rows, store):
            yield row, x.shape[1], _Along(each, x)
        return
    assert isinstance(points, Unsolved)
    for asked in counted_blocks(points.question, rows):
        solved = contraction.solved(layered(contraction, points.question, asked, "test", power=0))
        if solved is not None:
            points.residual = max(points.residual, contraction.tolerance)
            yield asked.first, asked.count, _Contracted(each, contraction, solved)
        else:
            yield asked.first, asked.count, _Along(each, points.solved(asked, store))


@dataclass(frozen=True, eq=False)
class _Sum:
    """Products at several models."""

    objective: Objective
    terms: list[tuple[float, Products]]

    def __call__(self, block: Block) -> NDArray[Any]:
        return np.asarray(sum(factor * products(block) for factor, products in self.terms))


@dataclass(frozen=True, eq=False)
class _Along:
    """``∇C_i · x_j`` of formed inverse products."""

    objective: Objective
    x: Vector

    def __call__(self, block: Block) -> NDArray[Any]:
        return derivatives_along(self.objective, block, self.x, "training").T


@dataclass(frozen=True, eq=False)
class _Contracted:
    """``∇C_i · x_j`` layer by layer."""

    objective: Objective
    contraction: Contraction | DualInverse
    solved: Any

    def __call__(self, block: Block) -> NDArray[Any]:
        right = layered(self.contraction, self.objective, block, "training", power=1)
        return self.contraction.products(self.solved, right)


def terms(parts: Sequence[Part]) -> dict[str, str]:
    """What scores depend on, by the names that errors use."""
    found: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        model, points, training = part.model, part.points, part.training
        depends_on = model.fingerprints()
        same = training.batches.data is model.objective.batches.data
        scored = depends_on["training data"] if same else fingerprint.of_examples(training)
        depends_on |= {
            "solver": repr(model.inverse.solver),
            "training loss": fingerprint.of_function(training.loss),
            "scored data": scored,
            **points.fingerprints(),
        }
        if len(parts) == 1 and part.factor == 1:
            return depends_on
        depends_on["factor"] = repr(part.factor)
        found |= {f"{name} of checkpoint {number}": value for name, value in depends_on.items()}
    return found


def residual_of(parts: Sequence[Part]) -> float:
    """The largest one of all inverse products."""
    return max(part.points.residual for part in parts)
