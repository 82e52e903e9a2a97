"""What a compiled function takes as a constant rather than as an array."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ihvp.backend import Batch


@jax.tree_util.register_static
class Static:
    """A value that is part of a compiled function's key: a loss, or a batch's string, flag or count.

    Two are equal if their values are equal and of one type (``1``, ``1.0`` and ``True`` trace differently);
    a value that cannot be hashed is equal only to itself.
    """

    def __init__(self, value: Any) -> None:
        self.value = value
        try:
            hash(value)
            self._key = (type(value), value)
        except TypeError:
            self._key = (type(value), id(value))

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self._key == other._key


def hold_constants(batch: Batch) -> Batch:
    """The batch with every leaf that is not an array as ``Static``."""
    return jax.tree.map(_array_or_static, batch)


def release_constants(batch: Batch) -> Batch:
    """The batch as the loss takes it: the inverse of ``hold_constants``."""
    return jax.tree.map(
        lambda leaf: leaf.value if isinstance(leaf, Static) else leaf,
        batch,
        is_leaf=lambda node: isinstance(node, Static),
    )


def _array_or_static(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return leaf
    # Other frameworks' arrays, such as a DataLoader's tensors, offer themselves to numpy.
    if not hasattr(leaf, "__array__"):
        return Static(leaf)
    array = np.asarray(leaf)
    return Static(leaf) if array.dtype.kind in "OSUMm" else array
