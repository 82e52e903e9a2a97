"""A model opened at its layers: what goes into each, and derivatives by what each gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from ihvp.backend import Batch, OutputLoss, Params, Predict, Vector
from ihvp.errors import VectorError
from ihvp.layers import Layer
from ihvp_tf._derivatives import (
    Functions,
    Tensor,
    output_gradient,
    output_hessian_product,
    pulled_back,
    watching,
)
from ihvp_tf._layers import layers_of
from ihvp_tf._moments import differentiable_moments
from ihvp_tf._parameters import names_of, vector_dtype


class _Seen(tf.experimental.ExtensionType):  # type: ignore[misc]
    """A :class:`Layer` beside its inputs, use by use: what a function of TensorFlow can return."""

    name: str
    start: int
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    d_in: int
    d_out: int
    groups: int
    bias: Optional[int]  # noqa: UP045 - TensorFlow reads it
    one_hot: bool
    inputs: tuple[tf.Tensor, ...]


@dataclass(frozen=True)
class CotangentLoss:
    """``⟨predict(params, batch), cotangents⟩``; equal for equal models, so that its graph is found again."""

    predict: Predict

    def __call__(self, params: Params, batch: tuple[Batch, Sequence[Any]]) -> Any:
        """The loss of a batch ``(batch, [cotangents])``."""
        outputs = tf.nest.flatten(self.predict(params, batch[0]))
        dtype = vector_dtype(outputs)
        pairs = zip(outputs, batch[1], strict=True)
        return tf.add_n([tf.reduce_sum(tf.cast(y, dtype) * tf.cast(c, dtype)) for y, c in pairs])


class OpenModel:
    """One forward pass as ``ihvp.backend.OpenModel`` describes it.

    Derivatives are taken in a graph of their own, which passes forward once for all cotangents: TensorFlow
    keeps no intermediate results from one call of a graph to the next.

    ``run(derivative, functions, params, batch)`` is that of the backend.
    """

    def __init__(self, run: Callable[..., Any], predict: Predict, params: Params, batch: Batch) -> None:
        self._run, self._predict, self._params, self._batch = run, predict, params, batch
        arrays = [leaf for leaf in tf.nest.flatten(batch) if len(getattr(leaf, "shape", ()))]
        self._count = int(arrays[0].shape[0]) if arrays else 1
        self._structure, seen = run(_opened, (predict,), params, batch)
        self._outputs = tf.nest.flatten(self._structure)
        self._dtype = vector_dtype(self._outputs).as_numpy_dtype
        self.shapes: Sequence[tuple[int, ...]] = [output.shape for output in self._outputs]
        self.layers: list[Layer] = []
        self.inputs: list[Vector] = []
        doubtful = set()
        for found in seen:
            layer = Layer(**{field.name: getattr(found, field.name) for field in fields(Layer)})
            own = () if layer.one_hot else (layer.groups, layer.d_in)
            uses = [given.numpy() for given in found.inputs]
            places = {use.shape[: use.ndim - len(own)] for use in uses}
            if all(self._has_examples(axes) for axes in places):
                self.layers.append(layer)
                self.inputs.append(_side_by_side([use.reshape(self._count, -1, *own) for use in uses]))
                if any(axes[:1] != (self._count,) or self._count in axes[1:] for axes in places):
                    doubtful.add(layer)
        if doubtful and self._count > 1:
            self._leave_out(doubtful & self._mixed())

    def outputs(self) -> Vector:
        """The F outputs, ``(F,)``."""
        return np.concatenate([output.reshape(-1).astype(self._dtype) for output in self._outputs])

    def pull_back(self, cotangents: Vector) -> Sequence[Vector]:
        """For ``(V, F)``: for each layer ``(V, B, S, groups, d_out)``."""
        if not self.layers:
            return []
        rows = self._rows(np.asarray(cotangents))
        found = self._run(_pulled, (self._predict,), self._params, (self._batch, rows))
        shape = len(rows), self._count, -1
        return [
            _side_by_side([g.reshape(*shape, layer.groups, layer.d_out) for g in found[layer.start]], 2)
            for layer in self.layers
        ]

    def output_gradient(self, loss: OutputLoss) -> Vector:
        """The gradient of ``loss(outputs, batch)`` by the outputs, ``(F,)``."""
        return self._run(output_gradient, (loss,), None, (self._batch, self._structure))

    def output_hvp(self, loss: OutputLoss, v: Vector) -> Vector:
        """``∇²_outputs loss · v`` for ``v`` of shape ``(F, k)``."""
        rows = self._rows(np.asarray(v).T)
        return self._run(output_hessian_product, (loss,), None, (self._batch, self._structure, rows)).T

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        size = sum(output.size for output in self._outputs)
        if rows.ndim != 2 or rows.shape[1] != size:
            raise VectorError(
                f"Found vectors of shape {rows.shape}; expected rows of {size} entries, one for each output."
            )
        return np.ascontiguousarray(rows, self._dtype)

    def _has_examples(self, places: tuple[int, ...]) -> bool:
        """Whether the examples may be the leading axis of the places, or the slow factor of the only one."""
        if self._count == 1 or places[:1] == (self._count,):
            return True
        return len(places) == 1 and places[0] % self._count == 0

    def _mixed(self) -> set[Layer]:
        """The layers in which the outputs of the first or the last example lead to another example."""
        rng, ends = np.random.default_rng(0), (0, self._count - 1)
        rows = [[np.zeros(shape) for shape in self.shapes] for _ in ends]
        for row, example in zip(rows, ends, strict=True):
            for output in row:
                if output.shape[:1] == (self._count,):
                    output[example] = rng.standard_normal(output.shape[1:])
        pulled = self.pull_back(np.stack([np.concatenate([y.ravel() for y in row]) for row in rows]))
        return {
            layer
            for layer, (first, last) in zip(self.layers, pulled, strict=True)
            if first[1:].any() or last[:-1].any()
        }

    def _leave_out(self, layers: set[Layer]) -> None:
        kept = [index for index, layer in enumerate(self.layers) if layer not in layers]
        self.layers = [self.layers[index] for index in kept]
        self.inputs = [self.inputs[index] for index in kept]


def _opened(
    functions: Functions, params: Params, variables: Sequence[Any], batch: Batch
) -> tuple[Any, list[_Seen]]:
    """The outputs, and the layers with their inputs."""
    structure, outputs, _, layers = _forward(functions, params, variables, batch)
    dtype, seen = vector_dtype(variables), []
    for layer, uses in layers:
        inputs = [use.inputs(use.source) for use in uses]
        cast = inputs if layer.one_hot else [tf.cast(given, dtype) for given in inputs]
        seen.append(_Seen(**asdict(layer), inputs=tuple(cast)))
    return tf.nest.pack_sequence_as(structure, outputs), seen


def _pulled(
    functions: Functions, params: Params, variables: Sequence[Any], batch: tuple[Batch, Tensor]
) -> dict[int, list[Tensor]]:
    """By the start of a layer, the derivatives by what each of its uses gives, ``(V, …, groups, d_out)``."""
    data, cotangents = batch
    _, outputs, tape, layers = _forward(functions, params, variables, data)
    dtype, every = vector_dtype(variables), [use for _, uses in layers for use in uses]

    def pull_back(row: Tensor) -> list[Tensor]:
        slopes = pulled_back(tape, outputs, row, [use.sink for use in every])
        return [tf.cast(use.outputs(slope), dtype) for use, slope in zip(every, slopes, strict=True)]

    pulled = iter(tf.map_fn(pull_back, cotangents, fn_output_signature=[dtype] * len(every)))
    return {layer.start: [next(pulled) for _ in uses] for layer, uses in layers}


def _forward(functions: Functions, params: Params, variables: Sequence[Any], batch: Batch) -> tuple[Any, ...]:
    (predict,) = functions
    # Where each tf.function runs as a part of this graph, its layers are seen.
    with watching(variables) as tape, differentiable_moments():
        structure = predict(params, batch)
        outputs = [tf.convert_to_tensor(output) for output in tf.nest.flatten(structure)]
    given = [leaf for leaf in tf.nest.flatten(batch) if tf.is_tensor(leaf)]
    return structure, outputs, tape, layers_of(variables, names_of(params), given, outputs)


def _side_by_side(uses: list[np.ndarray], axis: int = 1) -> np.ndarray:
    return uses[0] if len(uses) == 1 else np.concatenate(uses, axis)
