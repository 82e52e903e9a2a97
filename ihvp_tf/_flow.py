"""Where the numbers of a parameter go in a graph: through what only moves them, to what computes with them.

A parameter is followed as a view of an array that is never filled. Its address and its strides say which part
of the parameter a tensor is, in which order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

SAME_NUMBERS = frozenset({"Cast", "Identity", "ReadVariableOp"})
_NO_NUMBERS = frozenset({"Rank", "Shape", "ShapeN", "Size", "VariableShape"})


def uses(tensor: Any, view: np.ndarray) -> Iterator[tuple[Any, int, np.ndarray]]:
    """Every operation that computes with a parameter, the number of its operand, and what stands there."""
    for operation in readers(tensor):
        for operand, given in enumerate(operation.inputs):
            if given is not tensor:
                continue
            moved = _moved(operation, view)
            if moved is None:
                yield operation, operand, view
                continue
            for output, part in zip(operation.outputs, moved, strict=True):
                yield from uses(output, part)


def readers(tensor: Any) -> list[Any]:
    """The operations that take the numbers of a tensor, each once."""
    return [op for op in dict.fromkeys(tensor.consumers()) if op.type not in _NO_NUMBERS]


def _moved(operation: Any, view: np.ndarray) -> list[np.ndarray] | None:
    """The view in each output of an operation that only moves numbers; None of others."""
    kind = operation.type
    if kind in SAME_NUMBERS:
        return [view]
    if kind in ("ExpandDims", "Reshape", "Squeeze"):
        shape = operation.outputs[0].shape
        reshaped = view.reshape(shape) if shape.is_fully_defined() else None
        return [reshaped] if reshaped is not None and np.may_share_memory(reshaped, view) else None
    constants = [tf.get_static_value(given) for given in operation.inputs]
    if kind == "Transpose" and constants[1] is not None:
        return [view.transpose(constants[1])]
    if kind == "Split" and constants[0] is not None:
        return np.split(view, operation.get_attr("num_split"), axis=int(constants[0]))
    if kind == "SplitV" and constants[1] is not None and constants[2] is not None:
        return np.split(view, np.cumsum(constants[1])[:-1], axis=int(constants[2]))
    if kind == "StridedSlice" and all(constant is not None for constant in constants[1:]):
        index = _index(operation, *constants[1:])
        return None if index is None else [view[index]]
    return None


def _index(operation: Any, begin: np.ndarray, end: np.ndarray, strides: np.ndarray) -> Any:
    masks = ("begin_mask", "end_mask", "shrink_axis_mask", "ellipsis_mask", "new_axis_mask")
    begins, ends, shrinks, *others = (operation.get_attr(mask) for mask in masks)
    if any(others):
        return None
    return tuple(
        int(first)
        if shrinks >> axis & 1
        else slice(None if begins >> axis & 1 else first, None if ends >> axis & 1 else last, step)
        for axis, (first, last, step) in enumerate(zip(begin, end, strides, strict=True))
    )
