"""What a convolution multiplies its kernel with: the patches of its input."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from ihvp_tf._flow import readers

Tensor = Any


class Window(NamedTuple):
    """A convolution over channels-last inputs, its spatial axes d in number.

    TensorFlow dilates some convolutions by a detour: positions of one remainder are put into batches of their
    own (``SpaceToBatchND``), convolved, and put back. Source and sink are then those of the whole.
    """

    source: Tensor
    sink: Tensor
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    same: bool  # whether the input is padded so that a position gives 1 / stride outputs
    padding: np.ndarray  # (d, 2), zeros before and after the input
    crops: np.ndarray  # (d,), how many outputs are left out at the end
    # The axes of length 1 that the source gets before it is convolved, in that order.
    unsqueezed: tuple[int, ...]

    @classmethod
    def of(cls, operation: Any, kernel: tuple[int, ...]) -> Window | None:
        """That of a convolution; None if it is of another kind."""
        if operation.get_attr("data_format") not in (b"NHWC", b"NDHWC"):
            return None
        padding = np.zeros((len(kernel), 2), int)
        if operation.get_attr("padding") == b"EXPLICIT":
            padding = np.reshape(operation.get_attr("explicit_paddings"), (-1, 2))[1:-1]
        source, unsqueezed = _before_unsqueezing(operation.inputs[0])
        plain = cls(
            source,
            operation.outputs[0],
            kernel,
            tuple(operation.get_attr("strides"))[1:-1],
            tuple(operation.get_attr("dilations"))[1:-1],
            operation.get_attr("padding") == b"SAME",
            padding,
            np.zeros(len(kernel), int),
            unsqueezed,
        )
        return plain._through_batches() if source.op.type == "SpaceToBatchND" else plain

    def _through_batches(self) -> Window | None:
        after = readers(self.sink)
        if [op.type for op in after] == ["Squeeze"]:
            after = readers(after[0].outputs[0])
        if [op.type for op in after] != ["BatchToSpaceND"]:
            return None
        split, joined = self.source.op, after[0]
        found = [tf.get_static_value(t) for t in (*split.inputs[1:], *joined.inputs[1:])]
        if any(constant is None for constant in found):
            return None
        block, padding, block_after, crops = found
        if np.any(block != block_after) or np.any(crops[:, 0]):
            return None
        if self.same or set(self.strides) != {1} or set(self.dilations) != {1} or self.padding.any():
            return None
        rest = split.inputs[0].shape.rank - 2 - len(block)  # the spatial axes that are not split
        block = np.pad(block, (0, rest), constant_values=1)
        padding, crops = (np.pad(pairs, ((0, rest), (0, 0))) for pairs in (padding, crops))
        source, earlier = _before_unsqueezing(split.inputs[0])
        for axis in self.unsqueezed:
            block = np.insert(block, axis - 1, 1)
            padding, crops = (np.insert(pairs, axis - 1, 0, axis=0) for pairs in (padding, crops))
        return self._replace(
            source=source,
            sink=joined.outputs[0],
            dilations=tuple(block),
            padding=padding,
            crops=crops[:, 1],
            unsqueezed=earlier + self.unsqueezed,
        )


def _before_unsqueezing(tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    axes: list[int] = []
    while tensor.op.type == "ExpandDims":
        axis = tf.get_static_value(tensor.op.inputs[1])
        if axis is None:
            break
        axes.insert(0, int(axis) % tensor.shape.rank)
        tensor = tensor.op.inputs[0]
    return tensor, tuple(axes)


def patches(source: Tensor, window: Window, groups: int) -> Tensor:
    """``(B, positions…, groups, kernel · channels)``: for each position what the kernel lies over."""
    for axis in window.unsqueezed:
        source = tf.expand_dims(source, axis)
    numbers = (window.kernel, window.strides, window.dilations, window.padding, window.crops)
    kernel, strides, dilations, padding, crops = (np.array(given, np.int32) for given in numbers)
    extent = dilations * (kernel - 1) + 1
    if window.same:
        size = tf.shape(source)[1:-1]
        total = tf.maximum(((size + strides - 1) // strides - 1) * strides + extent - size, 0)
        padding = tf.stack([total // 2, total - total // 2], 1)
    padded = tf.pad(source, tf.concat([[[0, 0]], padding, [[0, 0]]], 0))
    shape = tf.shape(padded)
    count = (shape[1:-1] - extent) // strides + 1 - crops
    reach = (count - 1) * strides + 1
    pieces = [
        tf.strided_slice(
            padded,
            np.pad(offset, 1),
            tf.concat([shape[:1], offset + reach, shape[-1:]], 0),
            np.pad(strides, 1, constant_values=1),
        )
        for offset in np.array(list(np.ndindex(*kernel)), np.int32) * dilations
    ]
    channels = source.shape[-1] // groups
    by_group = tf.reshape(
        tf.stack(pieces, -2), tf.concat([shape[:1], count, [len(pieces), groups, channels]], 0)
    )
    leading = range(1 + len(kernel))
    moved = tf.transpose(by_group, [*leading, len(leading) + 1, len(leading), len(leading) + 2])
    return tf.reshape(moved, tf.concat([shape[:1], count, [groups, len(pieces) * channels]], 0))
