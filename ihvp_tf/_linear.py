"""The operations of a graph that are linear maps ``y = W x`` of one operand, the weight being the other."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from ihvp_tf._flow import readers, uses
from ihvp_tf._patches import Window, patches

Tensor = Any
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_CONVOLUTIONS = ("Conv2D", "Conv3D", "DepthwiseConv2dNative")


class LinearMap(NamedTuple):
    """One operation, and how its tensors are read."""

    weight: np.ndarray  # a view of the weight, its axes in the order groups, outputs, inputs
    groups: int
    d_out: int
    d_in: int
    # source, sink: what is mapped, and what it is mapped to
    source: Tensor
    sink: Tensor
    # The source as (places…, groups, d_in), or as indices (places…) of unit vectors.
    inputs: Callable[[Tensor], Tensor]
    outputs: Callable[[Tensor], Tensor]  # a tensor in the shape of the sink as (places…, groups, d_out)
    last: bool = True  # whether the last axes of the sink are groups and outputs, in their order
    one_hot: bool = False


def linear_map(operation: Any, operand: int, view: np.ndarray) -> LinearMap | None:
    """What an operation does with a weight in one of its operands; None where that is no linear map."""
    kind = operation.type
    if kind in ("MatMul", "BatchMatMulV2"):
        return _contraction(operation, operand, view, *_matrix_terms(operation))
    if kind == "Einsum" and len(operation.inputs) == 2:
        return _contraction(operation, operand, view, *_einsum_terms(operation))
    if kind in _CONVOLUTIONS and operand == 1:
        return _convolution(operation, view)
    if kind in ("GatherV2", "ResourceGather") and operand == 0 and not operation.get_attr("batch_dims"):
        return _look_up(operation, view)
    return _call(operation, operand, view) if kind in _CALLS else None


def _matrix_terms(operation: Any) -> tuple[list[str], str]:
    flags = ("adj_x", "adj_y") if operation.type == "BatchMatMulV2" else ("transpose_a", "transpose_b")
    first, second = (operation.get_attr(flag) for flag in flags)
    stacks = [_letters(given.shape.rank, 2) for given in operation.inputs]
    terms = [stacks[0] + ("ji" if first else "ij"), stacks[1] + ("kj" if second else "jk")]
    return terms, max(stacks, key=len) + "ik"


def _einsum_terms(operation: Any) -> tuple[list[str], str]:
    before, _, after = operation.get_attr("equation").decode().partition("->")
    tensors = [*operation.inputs, operation.outputs[0]]
    *terms, last = [
        term.replace("...", _letters(tensor.shape.rank, len(term) - 3)) if "..." in term else term
        for term, tensor in zip([*before.split(","), after], tensors, strict=True)
    ]
    return terms, last


def _letters(rank: int | None, named: int) -> str:
    """Letters of the leading axes beside the named ones; broadcasting aligns them at their ends."""
    count = (rank or named) - named
    return "".join(chr(0x3B1 + axis) for axis in reversed(range(count)))


def _contraction(
    operation: Any, operand: int, view: np.ndarray, terms: list[str], y: str
) -> LinearMap | None:
    x, w = terms[1 - operand], terms[operand]
    source, sink = operation.inputs[1 - operand], operation.outputs[0]
    if any(len(set(term)) < len(term) for term in (x, w, y)) or source.shape.rank != len(x):
        return None
    groups = [axis for axis in y if axis in x and axis in w]
    outputs = [axis for axis in y if axis in w and axis not in x]
    inputs = [axis for axis in x if axis in w and axis not in y]
    places = [axis for axis in x if axis in y and axis not in w]
    if len(w) + len(x) + len(y) != 3 * len(groups) + 2 * (len(outputs) + len(inputs) + len(places)):
        return None  # an axis that is summed by itself
    size = dict(zip(w, view.shape, strict=True))
    if any(source.shape[x.index(axis)] != size[axis] for axis in groups):
        return None  # broadcast
    n_groups, d_out, d_in = (prod(size[axis] for axis in part) for part in (groups, outputs, inputs))
    whole = _unflattened(source, d_in) if x == "ij" else None
    return LinearMap(
        view.transpose([w.index(axis) for axis in groups + outputs + inputs]),
        n_groups,
        d_out,
        d_in,
        source,
        sink,
        lambda source: (
            _rows(source, x, places, groups + inputs, (n_groups, d_in))
            if whole is None
            else tf.expand_dims(whole, -2)
        ),
        lambda sink: _rows(sink, y, places, groups + outputs, (n_groups, d_out)),
        list(y) == places + groups + outputs,
    )


def _unflattened(rows: Tensor, d_in: int) -> Tensor | None:
    """The tensor whose leading axes were made one, as ``tf.tensordot`` does: it tells where examples are."""
    before = rows.op.inputs[0] if rows.op.type == "Reshape" else None
    if before is None or before.shape.rank is None or before.shape.rank < 2:
        return None
    return before if before.shape[-1] == d_in else None


def _rows(tensor: Tensor, axes: str, places: list[str], others: list[str], sizes: tuple[int, int]) -> Tensor:
    moved = tf.transpose(tensor, [axes.index(axis) for axis in places + others])
    return tf.reshape(moved, tf.concat([tf.shape(moved)[: len(places)], sizes], 0))


def _convolution(operation: Any, view: np.ndarray) -> LinearMap | None:
    window = Window.of(operation, view.shape[:-2])
    if window is None or window.source.shape[-1] is None:
        return None
    if operation.type == "DepthwiseConv2dNative":
        view = view.reshape(*window.kernel, 1, -1)
    channels, d_out = view.shape[-2:]
    groups = window.source.shape[-1] // channels
    d_out //= groups
    axes = range(len(window.kernel) + 1)
    return LinearMap(
        view.reshape(*window.kernel, channels, groups, d_out).transpose(-2, -1, *axes),
        groups,
        d_out,
        prod(window.kernel) * channels,
        window.source,
        window.sink,
        lambda source: patches(source, window, groups),
        lambda sink: tf.reshape(sink, tf.concat([tf.shape(sink)[:-1], [groups, d_out]], 0)),
    )


def _look_up(operation: Any, view: np.ndarray) -> LinearMap | None:
    if operation.type == "GatherV2" and tf.get_static_value(operation.inputs[2]) != 0:
        return None
    if operation.outputs[0].shape.rank is None:
        return None
    source, sink, d_out = operation.inputs[1], operation.outputs[0], prod(view.shape[1:])
    places = sink.shape.rank - view.ndim + 1
    return LinearMap(
        np.moveaxis(view, 0, -1),
        1,
        d_out,
        view.shape[0],
        source,
        sink,
        lambda source: source,
        lambda sink: tf.reshape(sink, tf.concat([tf.shape(sink)[:places], [1, d_out]], 0)),
        one_hot=True,
    )


def _call(operation: Any, operand: int, view: np.ndarray) -> LinearMap | None:
    """The only use of a weight in a function that maps an argument to a result: Keras' in groups are such."""
    body = operation.graph._get_function(operation.get_attr("f").name).graph
    inside = list(uses(body.inputs[operand], view))
    found = linear_map(*inside[0]) if len(inside) == 1 else None
    if found is None:
        return None
    sink = found.sink
    while [op.type for op in readers(sink)] in (["Identity"], ["Squeeze"]):
        sink = readers(sink)[0].outputs[0]
    sources = [o for i, o in zip(body.inputs, operation.inputs, strict=True) if i is found.source]
    sinks = [o for i, o in zip(body.outputs, operation.outputs, strict=True) if i is sink]
    if len(sources) != 1 or len(sinks) != 1 or readers(sink):
        return None
    return found._replace(source=sources[0], sink=sinks[0])
