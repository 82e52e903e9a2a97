"""One or two passes over the data, and what they leave: the blocks of a structured curvature."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.arguments import naming
from ihvp.backend import Batch, OpenModel, SupportsLayers, Vector
from ihvp.data import count_examples, take_examples
from ihvp.errors import IhvpError, LossFailed, LossNotAdditive, MissingCapability
from ihvp.kronecker.blocks import (
    Block,
    DenseBlock,
    DiagonalBlock,
    KroneckerBlock,
    eigenvectors,
    kronecker_values,
)
from ihvp.kronecker.coverage import EXACT, Remainder, complete_layers, opened, require_used
from ihvp.kronecker.factors import Sharing, input_moment, moment_shapes, output_moment, squared_gradients
from ihvp.kronecker.file import FactorFile, Sums
from ihvp.kronecker.outputs import FisherKind, cotangents
from ihvp.layers import Layer
from ihvp.objective import Objective

# The layers' inputs and pulled-back gradients of a piece of a batch hold about so many numbers (32 MiB and
# 512 MiB in float32): devices need much work at once.
_HOST_NUMBERS, _DEVICE_NUMBERS = 1 << 23, 1 << 27


@dataclass(frozen=True)
class Options:
    """How the curvature is estimated, as :class:`ihvp.KFAC` is told."""

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


def estimate(
    objective: Objective, options: Options, corrected: bool, file: FactorFile | None = None
) -> tuple[list[Block], dict[str, str], float]:
    """The blocks, one for each layer and each parameter without one, and why layers were left out.

    The last is how many passes backwards over the data they took. Where they are ``corrected``, eigenvalues
    are those of the curvature itself in the factors' basis (EK-FAC). A ``file`` keeps the sums for a run that
    goes on after an interruption.
    """
    with naming(LossFailed, "The model"), objective.processes.together():
        estimate = _Estimate(objective, options, file)
        return *estimate.blocks(corrected), estimate.passes


_ELSEWHERE = (
    "Put the model in a framework whose backend has it (torch, tf, jax), or use ihvp.OPG or an "
    "ihvp.LowRank of eigenpairs."
)


def require_layers(
    objective: Objective, advice: str = _ELSEWHERE
) -> tuple[SupportsLayers, Callable[..., Any], Callable[..., Any]]:
    """The backend that opens models, what predicts, and the loss of the outputs.

    An InvalidOption says that there is no ``predict``; MissingCapability, with the ``advice``, that the
    backend cannot open models.
    """
    predict, loss = objective.require_predict()
    if not isinstance(objective.backend, SupportsLayers):
        raise MissingCapability(type(objective.backend).__name__, "layers", advice)
    return objective.backend, predict, loss


class _Estimate:
    def __init__(self, objective: Objective, options: Options, file: FactorFile | None) -> None:
        self._objective, self._options, self._file = objective, options, file
        self._backend, self._predict, self._loss = require_layers(objective)
        objective.require_examples()
        objective.verify()
        weighing = (batch for batch, count in objective.batches if objective.weighting.total(batch, count))
        first = next(weighing, None)
        if first is not None:
            objective.require_additive(first)
        else:  # the examples of another process may weigh something
            first = next(iter(objective.batches))[0]
        self._weight = objective.mean_weight * objective.total_examples
        complete, self._refused = complete_layers(objective, self._predict, first)
        self._layers = self._seen_by_all(complete)
        self._rows = self._piece_size(first)
        self._remainder = Remainder(objective, self._predict, list(self._layers.values()))
        self._held: Piece | None = None
        self.passes = 0.0

    def blocks(self, corrected: bool) -> tuple[list[Block], dict[str, str]]:
        like = self._objective.space.asarray(np.zeros(0))
        sums = self._pass(1, self._add_moments, self._empty())
        inputs, outputs = {}, {}
        for name, layer in self._layers.items():
            of_inputs, of_outputs = sums["inputs"][name], sums["outputs"][name]
            if self._file is None:  # a file holds them until the second pass is over
                del sums["inputs"][name], sums["outputs"][name]
            one_hot = layer.one_hot
            inputs[name] = (
                (None, algebra.as_like(of_inputs[None], like))
                if one_hot
                else eigenvectors(of_inputs, like)[::-1]
            )
            outputs[name] = eigenvectors(of_outputs, like)[::-1]
            del of_inputs, of_outputs
        values = {name: kronecker_values(inputs[name][1], outputs[name][1]) for name in self._layers}
        if corrected:
            sums["values"] = {name: self._zeros(value.shape) for name, value in values.items()}
            bases = {name: (inputs[name][0], outputs[name][0]) for name in self._layers}
            sums = self._pass(2, partial(self._add_squares, bases), sums)
            values = {name: algebra.as_like(value, like) for name, value in sums["values"].items()}
        found: list[Block] = [
            KroneckerBlock(
                layer,
                inputs[name][0],
                outputs[name][0],
                values[name],
                None if corrected else (inputs[name][1], outputs[name][1]),
            )
            for name, layer in self._layers.items()
        ]
        for name, total in sums["rest"].items():
            place = self._remainder.places[name]
            if place.stop - place.start <= EXACT:
                found.append(DenseBlock(name, place, *eigenvectors(total, like)))
            else:
                found.append(DiagonalBlock(name, place, algebra.as_like(total, like)))
        return found, self._refused

    def _empty(self) -> Sums:
        moments = {name: moment_shapes(layer) for name, layer in self._layers.items()}
        return {
            "inputs": {name: self._zeros(shape) for name, (shape, _) in moments.items()},
            "outputs": {name: self._zeros(shape) for name, (_, shape) in moments.items()},
            "rest": {name: self._zeros(shape) for name, shape in self._remainder.shapes.items()},
        }

    def _zeros(self, shape: tuple[int, ...]) -> Vector:
        space = self._objective.space
        return space.xp.zeros(shape, dtype=space.dtype, device=space.device)

    def _pass(self, number: int, add: Callable[[Piece, Sums], None], sums: Sums) -> Sums:
        """What the pieces of the data add to the sums, over all processes; after those that a file holds."""
        done = 0 if self._file is None else self._file.resume(number, sums)
        for piece in self._pieces(done):
            done += 1
            add(piece, sums)
            del piece  # before the next one is opened
            if self._file is not None:
                self._file.keep(number, done, sums)
        added = sums if number == 1 else ("values",)
        return {kind: self._reduced(terms) if kind in added else terms for kind, terms in sums.items()}

    def _add_moments(self, piece: Piece, sums: Sums) -> None:
        sharing, like = self._options.sharing, self._objective.space.asarray(np.zeros(0))
        for layer, inputs in self._seen(piece.model):
            sums["inputs"][layer.name] += input_moment(
                layer, inputs, piece.weights / self._weight, sharing, like
            )
        for vectors, gradients in zip(piece.cotangents, piece.gradients, strict=True):
            for name, gradient in gradients.items():
                sums["outputs"][name] += piece.share * output_moment(gradient, sharing)
            self._remainder.add(piece.batch, piece.model, vectors, piece.share, sums["rest"])

    def _add_squares(self, bases: dict[str, tuple[Any, Vector]], piece: Piece, sums: Sums) -> None:
        for layer, inputs in self._seen(piece.model):
            for gradients in piece.gradients:
                squares = squared_gradients(layer, inputs, gradients[layer.name], *bases[layer.name])
                sums["values"][layer.name] += piece.share * squares

    def _pieces(self, done: int) -> Iterator[Piece]:
        """The data but for the first pieces, opened; kept for a second pass where it is one piece."""
        if self._held is not None:
            yield self._held
            return
        objective = self._objective
        for batch, count in objective.batches:
            # Pieces of nearly one size, and not a small one at the end.
            bounds = np.linspace(0, count, -(-count // self._rows) + 1, dtype=int).tolist()
            for start, stop in pairwise(bounds):
                part = batch if len(bounds) == 2 else take_examples(batch, start, stop)
                if not objective.weighting.total(part, stop - start):
                    continue
                if done:
                    done -= 1
                elif stop - start == objective.num_examples:
                    self._held = self._open(part)
                    yield self._held
                else:
                    yield self._open(part)

    def _open(self, batch: Batch) -> Piece:
        objective, options = self._objective, self._options
        weights = objective.weighting.of(batch, count_examples(batch))
        relative, unit = objective.relative_weights(weights)
        model = opened(objective, self._predict, batch)
        kind = objective.space.product_eps, options.fisher, options.num_samples, options.seed
        found = list(cotangents(model, self._loss, relative, *kind))
        gradients = []
        for vectors in found:
            # Before the layers are asked for: derivatives may tell a backend how their rows are arranged.
            pulled = model.pull_back(vectors)
            named = zip((layer.name for layer in model.layers), pulled, strict=True)
            gradients.append({name: gradient for name, gradient in named if name in self._layers})
            self.passes += len(vectors) * len(weights) / objective.num_examples
        return Piece(batch, model, weights, unit / self._weight, found, gradients)

    def _seen(self, model: OpenModel) -> Iterator[tuple[Layer, Vector]]:
        require_used(self._layers, [layer.name for layer in model.layers], self._predict)
        for layer, inputs in zip(model.layers, model.inputs, strict=True):
            if layer.name in self._layers:
                yield layer, inputs

    def _piece_size(self, batch: Batch) -> int:
        """How many examples keep what a piece holds within bounds."""
        one = take_examples(batch, 0, 1) if count_examples(batch) > 1 else batch
        try:
            model = opened(self._objective, self._predict, one)
        except IhvpError:
            raise
        except Exception as error:  # what batch norm raises is torch's own
            raise LossNotAdditive(
                math.nan,
                "mean",
                f"One example alone fails with {type(error).__name__}: {error}. Where that is batch norm in "
                "training, call model.eval() (torch) or pass training=False (Keras).",
            ) from error
        views = self._options.num_samples
        if self._options.fisher != "mc":
            width = sum(prod(shape[1:]) for shape in model.shapes)
            views = width if self._options.fisher == "exact" else 1
        numbers: int = sum(
            prod(inputs.shape[1:]) + views * inputs.shape[1] * layer.groups * layer.d_out
            for layer, inputs in zip(model.layers, model.inputs, strict=True)
        )
        most = _HOST_NUMBERS if self._objective.backend.device == "cpu" else _DEVICE_NUMBERS
        return max(1, most // max(numbers, 1))

    def _seen_by_all(self, layers: dict[str, Layer]) -> dict[str, Layer]:
        """The layers that every process found complete."""
        objective = self._objective
        processes = objective.processes.count
        if processes == 1:
            return layers
        flags = np.zeros(objective.num_params)
        flags[[layer.start for layer in layers.values()]] = 1.0
        counts = objective.processes.sum(flags)
        for layer in layers.values():
            if counts[layer.start] < processes:
                self._refused[layer.name] = "another process did not see it whole"
        return {name: layer for name, layer in layers.items() if name not in self._refused}

    def _reduced(self, sums: dict[str, Vector]) -> dict[str, Vector]:
        if self._objective.processes.count == 1:
            return sums
        reduced, reduce = {}, self._objective.processes.reduce
        for name, value in sums.items():
            xp = array_api_compat.array_namespace(value)
            reduced[name] = xp.reshape(reduce(xp.reshape(value, (-1,))), value.shape)
        return reduced
