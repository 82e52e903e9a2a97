"""Numpy arrays as tensors, by one copy.

TensorFlow's own conversion takes two. It also shares memory, by DLPack, but its kernels abort the process
where that is not aligned, and numpy aligns to 16 bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

_ALIGNMENT = 64


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """A copy of an array, contiguous and aligned; strings and objects are given back as they are."""
    if array.dtype.hasobject:
        return array
    memory = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return copy


def share(memory: np.ndarray) -> Any:
    """What :func:`aligned_copy` gave, as a tensor in the same memory where its dtype allows."""
    if memory.dtype.kind in "fiu" and memory.dtype.isbuiltin == 1 and memory.size:
        return tf.experimental.dlpack.from_dlpack(memory.__dlpack__())
    return tf.convert_to_tensor(memory)


def to_tensor(leaf: Any) -> Any:
    """A copy of an array as a tensor; other leaves as they are."""
    if isinstance(leaf, np.generic) or (hasattr(leaf, "__array__") and not tf.is_tensor(leaf)):
        array = np.asarray(leaf)
        return share(aligned_copy(array)) if array.ndim else tf.convert_to_tensor(array)
    return leaf
