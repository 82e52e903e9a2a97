"""Projected gradients as records on the disk: few bits for each number, and a scale for each example."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ihvp.errors import NonFinite

IndexDtype: TypeAlias = Literal["float16", "bfloat16", "float32", "float64"]

# numpy has no bfloat16: its bits are the upper half of those of a float32.
_STORED = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "float64": "<f8"}


def record_dtype(dim: int, dtype: IndexDtype) -> np.dtype[Any]:
    """Of one example: ``dim`` numbers, and by what they are multiplied."""
    return np.dtype([("scale", "<f4"), ("values", _STORED[dtype], (dim,))])


def encode(rows: NDArray[Any], dtype: IndexDtype) -> NDArray[Any]:
    """Rows ``(b, dim)`` as records ``(b,)``.

    A float16 reaches from 6e-8 to 65,504 only, and gradients of well-fitted examples are far smaller than
    those of others: each row is divided by a power of two, so that its largest entry is between ½ and 1.

    >>> rows = np.array([[1e-9, 2e-9], [3e5, 1e5]])
    >>> np.abs(decode(encode(rows, "float16"), "float16") / rows - 1).max() < 1e-3
    np.True_
    """
    found = np.empty(len(rows), record_dtype(rows.shape[1], dtype))
    scale, largest = np.ones(len(rows), np.float32), np.abs(rows).max(axis=1)
    if dtype != "float64" and largest.max(initial=0.0) > np.finfo(np.float32).max / 2:
        raise NonFinite(f"A projected gradient in {dtype}")
    if dtype == "float16":
        _, exponent = np.frexp(largest)
        scale = np.ldexp(scale, np.maximum(exponent, -126))
        rows = rows / scale[:, None]
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(rows, np.float32).view(np.uint32)
        rows = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16  # to the nearest, of two to the even one
    found["scale"], found["values"] = scale, rows
    return found


def decode(records: NDArray[Any], dtype: IndexDtype) -> NDArray[Any]:
    """Records ``(b,)`` as rows ``(b, dim)`` of float32, or float64 where they are kept so."""
    rows = unscaled(records, dtype)
    return rows if dtype != "float16" else rows * records["scale"][:, None]


def unscaled(records: NDArray[Any], dtype: IndexDtype) -> NDArray[Any]:
    """The same, not yet multiplied by the scales: the products of many queries are fewer numbers."""
    values = records["values"]
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64 if dtype == "float64" else np.float32)
