"""One or two passes over the data, and what they leave: the blocks of a structured curvature."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp.arguments import naming
from ihvp.backend import Batch, OpenModel, SupportsLayers, SupportsReduce, Vector
from ihvp.data import count_examples, take_examples
from ihvp.errors import LossFailed, MissingCapability
from ihvp.kronecker.blocks import Block, DenseBlock, DiagonalBlock, KroneckerBlock, eigenvectors
from ihvp.kronecker.coverage import EXACT, Remainder, complete_layers, opened, require_used
from ihvp.kronecker.factors import Sharing, input_moment, output_moment, squared_gradients
from ihvp.kronecker.outputs import FisherKind, cotangents
from ihvp.layers import Layer
from ihvp.objective import Objective

# The layers' inputs and pulled-back gradients of a piece of a batch hold about so many numbers (512 MiB in
# float32).
_NUMBERS = 1 << 27


@dataclass(frozen=True)
class Options:
    """How the curvature is estimated.

    Attributes
    ----------
    fisher : {"exact", "mc", "empirical"}
    sharing : {"expand", "reduce"}
    num_samples, seed : int
        Of ``"mc"``.
    """

    fisher: FisherKind
    sharing: Sharing
    num_samples: int
    seed: int


class Piece(NamedTuple):
    """A part of a batch: the model opened on it, and how its examples count."""

    batch: Batch
    model: OpenModel
    weights: NDArray[np.float64]
    share: float
    cotangents: list[Vector]
    gradients: list[Any]


@dataclass
class Sums:
    """The moments of each layer by its name, and what the other parameters need."""

    layers: dict[str, Layer] = field(default_factory=dict)
    inputs: dict[str, Vector] = field(default_factory=dict)
    outputs: dict[str, Vector] = field(default_factory=dict)


def estimate(objective: Objective, options: Options, corrected: bool) -> tuple[list[Block], dict[str, str]]:
    """The blocks, one for each layer and each parameter without one, and why layers were left out.

    Parameters
    ----------
    objective : Objective
    options : Options
    corrected : bool
        Whether the eigenvalues are those of the curvature itself in the factors' basis (EK-FAC).
    """
    with naming(LossFailed, "The model"):
        return _Estimate(objective, options).blocks(corrected)


def require_layers(
    objective: Objective,
) -> tuple[SupportsLayers, Callable[..., Any], Callable[..., Any]]:
    """The backend that opens models, what predicts, and the loss of the outputs.

    Raises
    ------
    InvalidOption
        The objective has no ``predict``.
    MissingCapability
        The backend cannot open models.
    """
    predict, loss = objective.require_predict()
    if not isinstance(objective.backend, SupportsLayers):
        raise MissingCapability(
            type(objective.backend).__name__,
            "layers",
            "Put the model in a framework whose backend has it (torch, tf, jax), or use ihvp.OPG or an "
            "ihvp.LowRank of eigenpairs.",
        )
    return objective.backend, predict, loss


class _Estimate:
    def __init__(self, objective: Objective, options: Options) -> None:
        self._objective, self._options = objective, options
        self._backend, self._predict, self._loss = require_layers(objective)
        objective.verify()
        first = next(batch for batch, count in objective.batches if objective.weighting.total(batch, count))
        objective.require_additive(first)
        self._weight = objective.mean_weight * objective.total_examples
        self._complete, self._refused = complete_layers(objective, self._predict, first)
        self._rows = self._piece_size(first)
        self._held: list[Piece] | None = []

    def blocks(self, corrected: bool) -> tuple[list[Block], dict[str, str]]:
        sums, remainder = self._moments()
        inputs = {
            name: (None, moment[None]) if sums.layers[name].one_hot else eigenvectors(moment)[::-1]
            for name, moment in sums.inputs.items()
        }
        outputs = {name: eigenvectors(moment)[::-1] for name, moment in sums.outputs.items()}
        if corrected:
            values = self._corrected({name: (inputs[name][0], outputs[name][0]) for name in sums.layers})
        else:
            values = {
                name: outputs[name][1][:, :, None] * inputs[name][1][:, None, :] for name in sums.layers
            }
        found: list[Block] = [
            KroneckerBlock(
                layer,
                inputs[name][0],
                outputs[name][0],
                values[name],
                None if corrected else (inputs[name][1], outputs[name][1]),
            )
            for name, layer in sums.layers.items()
        ]
        for name, total in self._reduced(remainder.sums).items():
            place = remainder.places[name]
            if place.stop - place.start <= EXACT:
                found.append(DenseBlock(name, place, *eigenvectors(total)))
            else:
                found.append(DiagonalBlock(name, place, total))
        return found, self._refused

    def _moments(self) -> tuple[Sums, Remainder]:
        sums, sharing = Sums(), self._options.sharing
        remainder: Remainder | None = None
        for piece in self._pieces():
            for layer, inputs in self._seen(piece.model):
                sums.layers[layer.name] = layer
                moment = input_moment(
                    layer, inputs, piece.weights / self._weight, sharing, self._objective.space.zeros(1)[:0]
                )
                _add(sums.inputs, layer.name, moment)
            if remainder is None:
                remainder = Remainder(self._objective, self._predict, list(sums.layers.values()))
            for vectors, gradients in zip(piece.cotangents, piece.gradients, strict=True):
                for name, gradient in gradients.items():
                    _add(sums.outputs, name, piece.share * output_moment(gradient, sharing))
                remainder.add(piece.batch, piece.model, vectors, piece.share)
        assert remainder is not None  # some example weighs something
        sums.inputs, sums.outputs = self._reduced(sums.inputs), self._reduced(sums.outputs)
        return sums, remainder

    def _corrected(self, bases: dict[str, tuple[Any, Vector]]) -> dict[str, Vector]:
        values: dict[str, Vector] = {}
        for piece in self._pieces():
            for layer, inputs in self._seen(piece.model):
                for gradients in piece.gradients:
                    squares = squared_gradients(layer, inputs, gradients[layer.name], *bases[layer.name])
                    _add(values, layer.name, piece.share * squares)
        return self._reduced(values)

    def _pieces(self) -> Iterator[Piece]:
        """The data, opened; kept for a second pass where it is one piece."""
        if self._held:
            yield from self._held
            return
        objective, generator = self._objective, np.random.default_rng(self._options.seed)
        number = 0
        for batch, count in objective.batches:
            for start in range(0, count, self._rows):
                part = (
                    batch
                    if count <= self._rows
                    else take_examples(batch, start, min(start + self._rows, count))
                )
                piece = self._open(part, generator)
                if piece is None:
                    continue
                number += 1
                self._held = [piece] if number == 1 and self._held is not None else None
                yield piece

    def _open(self, batch: Batch, generator: np.random.Generator) -> Piece | None:
        objective, options = self._objective, self._options
        weights = objective.weighting.of(batch, count_examples(batch))
        if not weights.any():
            return None
        relative, unit = objective.relative_weights(weights)
        model = opened(objective, self._predict, batch)
        found = list(cotangents(model, self._loss, relative, options.fisher, options.num_samples, generator))
        names = [layer.name for layer in model.layers]
        gradients = [
            {
                name: gradient
                for name, gradient in zip(names, model.pull_back(vectors), strict=True)
                if name in self._complete
            }
            for vectors in found
        ]
        return Piece(batch, model, weights, unit / self._weight, found, gradients)

    def _seen(self, model: OpenModel) -> Iterator[tuple[Layer, Vector]]:
        found = {
            layer.name: (layer, inputs)
            for layer, inputs in zip(model.layers, model.inputs, strict=True)
            if layer.name in self._complete
        }
        require_used(self._complete, found, self._predict)
        yield from found.values()

    def _piece_size(self, batch: Batch) -> int:
        """How many examples keep what a piece holds within bounds."""
        one = take_examples(batch, 0, 1) if count_examples(batch) > 1 else batch
        model = opened(self._objective, self._predict, one)
        views = self._options.num_samples
        if self._options.fisher != "mc":
            width = sum(prod(shape[1:]) for shape in model.shapes)
            views = width if self._options.fisher == "exact" else 1
        numbers: int = sum(
            prod(inputs.shape[1:]) + views * inputs.shape[1] * layer.groups * layer.d_out
            for layer, inputs in zip(model.layers, model.inputs, strict=True)
        )
        return max(1, _NUMBERS // max(numbers, 1))

    def _reduced(self, sums: dict[str, Vector]) -> dict[str, Vector]:
        backend = self._backend
        if not isinstance(backend, SupportsReduce):
            return sums
        reduced = {}
        for name, value in sums.items():
            xp = array_api_compat.array_namespace(value)
            reduced[name] = xp.reshape(backend.reduce(xp.reshape(value, (-1,))), value.shape)
        return reduced


def _add(sums: dict[str, Vector], name: str, term: Vector) -> None:
    sums[name] = sums[name] + term if name in sums else term
