"""The arrays of a batch that a loss can be differentiated by: those of floating numbers, with axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from ihvp.backend import Batch


def inputs(batch: Batch) -> list[Any]:
    """These arrays, in the order of ``tf.nest``."""
    return [leaf for leaf in tf.nest.flatten(batch) if _is_input(leaf)]


def in_place_of_inputs(rows: np.ndarray, batch: Batch) -> Batch:
    """The batch with the parts of ``rows``, ``(n,)`` or ``(k, n)``, as its inputs, and None for the rest."""
    ends = np.cumsum([int(np.prod(tuple(leaf.shape))) for leaf in inputs(batch)])
    pieces = iter(np.split(rows, ends[:-1], axis=-1))

    def take(leaf: Any) -> np.ndarray | None:
        if not _is_input(leaf):
            return None
        part = next(pieces).reshape(*rows.shape[:-1], *leaf.shape)
        return part.astype(_dtype(leaf).as_numpy_dtype, copy=False)

    return tf.nest.map_structure(take, batch)


def _is_input(leaf: Any) -> bool:
    if not (tf.is_tensor(leaf) or hasattr(leaf, "__array__")) or len(leaf.shape) == 0:
        return False
    return bool(_dtype(leaf).is_floating)


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if tf.is_tensor(leaf) else tf.as_dtype(np.asarray(leaf).dtype)
