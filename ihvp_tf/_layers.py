"""The layers of a graph: the weights whose every use is the same linear map, with the biases added to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.lib.array_utils import byte_bounds

from ihvp.layers import Layer
from ihvp_tf._flow import SAME_NUMBERS, readers, uses
from ihvp_tf._linear import LinearMap, linear_map
from ihvp_tf._parameters import size_of

Tensor = Any


class _Use(NamedTuple):
    low: int
    high: int
    layer: Layer | None  # None: no linear map
    map: LinearMap | None


def layers_of(
    variables: Sequence[Any], names: Sequence[str], given: Sequence[Tensor], outputs: Sequence[Tensor]
) -> list[tuple[Layer, list[LinearMap]]]:
    """The layers between the given tensors and the outputs, in the order of the variables, with their uses.

    To be called while the graph is traced, right after the model. Uses inside loops and conditions are no
    layers, nor are maps of what does not depend on the given tensors, if there are any.
    """
    graph = tf.compat.v1.get_default_graph()
    reached = _reached(graph, given)
    ends = np.cumsum([0, *map(size_of, variables)])
    found: list[_Use] = []
    places: dict[tuple[Any, int], tuple[int, np.ndarray]] = {}
    counts = []
    for index, (variable, name) in enumerate(zip(variables, names, strict=True)):
        memory = np.empty(size_of(variable), np.uint8)  # never touched, so it needs none
        here = list(uses(graph.capture(variable.handle), memory.reshape(variable.shape)))
        places |= {(op, operand): (index, view) for op, operand, view in here}
        counts.append(len(here))
        first = memory.ctypes.data - int(ends[index])
        for operation, operand, view in here:
            low, high = (address - first for address in byte_bounds(view))
            found.append(_Use(low, high, *_layer(operation, operand, view, name, low, reached)))

    layers = []
    for layer in dict.fromkeys(use.layer for use in found if use.layer is not None):
        touching = [use for use in found if use.low < layer.stop and layer.start < use.high]
        if any(use.layer != layer for use in touching):
            continue
        maps = [use.map for use in touching if use.map is not None]
        added = {_added(use, places, outputs) for use in maps}
        bias = added.pop() if len(added) == 1 else None
        if bias is not None and counts[bias] == len(maps):
            layer = replace(layer, bias=int(ends[bias]), name=_common(layer.name, names[bias]))
        layers.append((layer, maps))
    return layers


def _layer(
    operation: Any, operand: int, view: np.ndarray, name: str, start: int, reached: set[int] | None
) -> tuple[Layer | None, LinearMap | None]:
    found = linear_map(operation, operand, view)
    if found is None or (reached is not None and id(found.source) not in reached):
        return None, None
    order = sorted(range(found.weight.ndim), key=lambda axis: -found.weight.strides[axis])
    lying = found.weight.transpose(order)
    if not lying.flags.c_contiguous:
        return None, None
    axes = tuple(order.index(axis) for axis in range(len(order)))
    sizes = {"d_in": found.d_in, "d_out": found.d_out, "groups": found.groups}
    return Layer(name, start, lying.shape, axes, **sizes, one_hot=found.one_hot), found


def _reached(graph: Any, given: Sequence[Tensor]) -> set[int] | None:
    """The ids of the tensors that depend on those given; None for all where nothing is given."""
    reached = {id(tensor) for tensor in given}
    for operation in graph.get_operations():
        if not reached.isdisjoint(map(id, operation.inputs)):
            reached.update(map(id, operation.outputs))
    return reached or None


def _added(
    use: LinearMap, places: dict[tuple[Any, int], tuple[int, np.ndarray]], outputs: Sequence[Tensor]
) -> Any:
    """The number of the variable that is added to the outputs before anything else is done, or None."""
    sink = use.sink
    while use.last and not any(sink is output for output in outputs):
        after = readers(sink)
        if len(after) != 1:
            return None
        (operation,) = after
        if operation.type in SAME_NUMBERS | {"Reshape", "Squeeze"}:
            sink = operation.outputs[0]
            continue
        if operation.type not in ("Add", "AddV2", "BiasAdd"):
            return None
        index, view = places.get((operation, int(operation.inputs[0] is sink)), (None, np.empty(0)))
        leading = next((axis for axis, size in enumerate(view.shape) if size != 1), view.ndim)
        shape = view.shape[leading:]
        trailing = tuple(sink.shape[sink.shape.rank - len(shape) :]) if sink.shape.rank is not None else None
        whole = view.size == use.groups * use.d_out and view.flags.c_contiguous
        return index if whole and shape == trailing and not _by_second_axis(operation) else None
    return None


def _by_second_axis(operation: Any) -> bool:
    return operation.type == "BiasAdd" and bool(operation.get_attr("data_format") == b"NCHW")


def _common(weight: str, bias: str) -> str:
    """The name of what two variables are parts of, or that of the first."""
    owner, _, _ = weight.rpartition("/")
    return owner if owner and owner == bias.rpartition("/")[0] else weight
