"""Digests of bytes and of arrays."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp.algebra import as_numpy


def digest(*parts: Any) -> bytes:
    """Of bytes, or of arrays of bytes, one after another."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.digest()


def plain_array(array: Any) -> NDArray[Any] | None:
    """An array of any framework as numpy's, or None of what is no array or has no numbers."""
    if not (hasattr(array, "shape") and hasattr(array, "dtype")) or callable(array):
        return None
    try:
        plain = as_numpy(array)
    except Exception:  # a random key, a symbolic tensor, one without storage: each in its own way
        return None
    return None if plain.dtype.hasobject and not isinstance(array, np.ndarray) else plain


def array_bytes(array: NDArray[Any]) -> Any:
    """Every bit of it."""
    if array.dtype.hasobject:
        return repr(array.tolist()).encode()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
