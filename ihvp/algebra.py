"""Vector algebra on the device: dot products, updates in place, norms.

Vectors are ``(P,)``, blocks ``(P, k)``. Scalars come to the host as float64 (one number a column): there are
few of them, and recurrences on them should not suffer from the vectors' precision.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp.backend import Vector

Function = TypeVar("Function", bound=Callable[..., Any])

# Updates go through slices of this many rows: the product a·x then needs no third vector of length P, and
# stays in the processor's cache. On other devices a launch costs more than a cache miss.
_HOST_SLICE, _DEVICE_SLICE = 1 << 16, 1 << 24
# Sums of slices of this many products keep the digits that one sum in float32 would lose.
_SUMMED = 1 << 20


def to_numpy(array: Any) -> NDArray[Any]:
    """A numpy array with the values of ``array``, from any device."""
    if isinstance(array, np.ndarray):
        return array
    # JAX copies to the host by itself and takes no device by name; torch is the other way round.
    return np.asarray(
        array if array_api_compat.is_jax_array(array) else array_api_compat.to_device(array, "cpu")
    )


def _fused(function: Function, array: Vector) -> Function:
    """The function, compiled as one where the array is JAX's, which charges each operation by itself."""
    return _compiled(function) if array_api_compat.is_jax_array(array) else function


@functools.cache
def _compiled(function: Function) -> Function:
    # The core imports no framework; the one that an array belongs to is loaded.
    return sys.modules["jax"].jit(function)  # type: ignore[no-any-return]


def _on_host(array: Vector) -> bool:
    return str(array_api_compat.device(array)) == "cpu"


def _slices(array: Vector, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, array.shape[0], size))


def wide(array: Vector) -> Vector:
    """Half-precision arrays in float32: sums of products overflow or drown in 11 bits."""
    return array_api_compat.array_namespace(array).astype(array, _wide_dtype(array), copy=False)


def _wide_dtype(array: Vector) -> Any:
    xp = array_api_compat.array_namespace(array)
    return xp.float32 if xp.finfo(array.dtype).bits < 32 else array.dtype


def _plain_dots(x: Vector, y: Vector) -> NDArray[np.float64]:
    xp = array_api_compat.array_namespace(x, y)
    if array_api_compat.is_jax_array(x):
        return np.asarray(np.sum(to_numpy(_compiled(_partial_dots)(x, y)), axis=0, dtype=np.float64))
    x, y = wide(x), wide(y)
    with np.errstate(all="ignore"):
        if x.ndim == 1 and _on_host(x):
            # The host's libraries add up in the vectors' own precision.
            return np.asarray(sum(float(x[rows] @ y[rows]) for rows in _slices(x, _SUMMED)))
        result = x @ y if x.ndim == 1 else xp.vecdot(x, y, axis=0)
    return np.asarray(to_numpy(result), dtype=np.float64)


def _partial_dots(x: Vector, y: Vector) -> Vector:
    """The sums of products of each slice, ``(slices,)`` or ``(slices, k)``."""
    xp = array_api_compat.array_namespace(x)
    return xp.stack([xp.sum(wide(x[rows]) * wide(y[rows]), axis=0) for rows in _slices(x, _SUMMED)])


def _in_range(products: NDArray[np.float64], like: Vector) -> bool:
    """Whether sums of products neither overflowed nor lost digits to underflow; exact zeros are in doubt."""
    info = array_api_compat.array_namespace(like).finfo(_wide_dtype(like))
    lowest = float(info.smallest_normal) / float(info.eps)
    return bool(np.all(np.isfinite(products) & (np.abs(products) >= lowest)))


def _scaled(x: Vector) -> tuple[NDArray[np.float64], Vector]:
    """The largest magnitude of each column, 1 where that is 0 or not finite, and ``x`` divided by it."""
    x = wide(x)
    xp = array_api_compat.array_namespace(x)
    largest = np.asarray(to_numpy(xp.max(xp.abs(x), axis=0)), dtype=np.float64)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    return scale, x / coefficients(scale, x)


def dots(x: Vector, y: Vector) -> NDArray[np.float64]:
    """``xᵀ y`` of two vectors, shape ``()``, or column by column of two blocks, shape ``(k,)``.

    Large and tiny entries are scaled first where their products would leave the range of the dtype.
    """
    products = _plain_dots(x, y)
    if _in_range(products, x):
        return products
    (scale_x, x), (scale_y, y) = _scaled(x), _scaled(y)
    with np.errstate(all="ignore"):
        return np.asarray(scale_x * scale_y * _plain_dots(x, y))


def norms(x: Vector) -> NDArray[np.float64]:
    """``‖x‖₂`` of a vector, shape ``()``, or of each column, shape ``(k,)``, over the dtype's whole range."""
    squares = _plain_dots(x, x)
    if _in_range(squares, x):
        return np.asarray(np.sqrt(squares))
    scale, x = _scaled(x)
    return np.asarray(scale * np.sqrt(_plain_dots(x, x)))


def coefficients(values: NDArray[np.float64], like: Vector) -> Any:
    """Host scalars in a form that multiplies ``like``: a float for a vector, ``(k,)`` for a block."""
    if like.ndim == 1:
        return float(values.item())
    if array_api_compat.is_jax_array(like):
        return np.asarray(values, dtype=like.dtype)  # goes to the device with what it multiplies
    xp = array_api_compat.array_namespace(like)
    return xp.asarray(values, dtype=like.dtype, device=array_api_compat.device(like))


def axpy(y: Vector, a: Any, x: Vector) -> Vector:
    """``y + a x``, written into ``y`` where its type allows; use the result, never ``y`` again.

    ``a`` is a float, or the :func:`coefficients` of a block.
    """
    if not array_api_compat.is_writeable_array(y):
        return _fused(_plus_multiple, y)(y, a, x)
    for rows in _slices(y, _HOST_SLICE if _on_host(y) else _DEVICE_SLICE):
        y[rows] += a * x[rows]
    return y


def xpay(y: Vector, a: Any, x: Vector) -> Vector:
    """``a y + x``, written into ``y`` where its type allows; use the result, never ``y`` again."""
    if not array_api_compat.is_writeable_array(y):
        return _fused(_plus_multiple, y)(x, a, y)
    y *= a
    y += x
    return y


def _plus_multiple(y: Vector, a: Any, x: Vector) -> Vector:
    return y + a * x


def scale(y: Vector, a: Any) -> Vector:
    """``a y``, written into ``y`` where its type allows; use the result, never ``y`` again."""
    if not array_api_compat.is_writeable_array(y):
        return a * y
    y *= a
    return y


def subtract_from(v: Vector, y: Vector) -> Vector:
    """``v − y``, written into ``y`` where its type allows; use the result, never ``y`` again."""
    return xpay(y, -1.0, v)


def copy(x: Vector) -> Vector:
    """A vector of the same values that may be written to."""
    xp = array_api_compat.array_namespace(x)
    return xp.asarray(x, copy=True)


def all_finite(x: Vector) -> bool:
    """Whether no entry is NaN or infinite."""
    xp = array_api_compat.array_namespace(x)
    # One pass without a temporary; only a sum that overflows needs the second look.
    with np.errstate(all="ignore"):
        if bool(xp.isfinite(xp.sum(x))):
            return True
    return bool(xp.all(xp.isfinite(x)))


def columns(x: Vector, keep: NDArray[np.intp]) -> Vector:
    """The columns ``keep`` of a block, as a new block."""
    return take(x, keep, axis=1)


def take(x: Any, numbers: NDArray[np.intp], axis: int) -> Any:
    """The rows or columns of these numbers, in this order, as a new array."""
    xp = array_api_compat.array_namespace(x)
    if array_api_compat.is_jax_array(x):
        return xp.take(x, numbers, axis=axis)  # they go to the device with what they index, and fast
    return xp.take(x, xp.asarray(numbers, device=array_api_compat.device(x)), axis=axis)


def concatenate(blocks: list[Vector]) -> Vector:
    """Blocks side by side, as one block."""
    return array_api_compat.array_namespace(blocks[0]).concat(blocks, axis=1)


def column(block: Vector, place: int) -> Vector:
    """One column of a block; a vector is its only column."""
    return block if block.ndim == 1 else block[:, place]


def keep(block: Vector, mask: NDArray[np.bool_]) -> Vector:
    """The columns where ``mask`` holds: a new block, unless that is all of them or a vector."""
    if block.ndim == 1 or np.all(mask):
        return block
    return columns(block, np.flatnonzero(mask))


def join(parts: list[tuple[NDArray[np.intp], Vector]]) -> Vector:
    """Parts of a block by their column numbers, as one block in order."""
    if len(parts) == 1:
        return parts[0][1]
    numbers = np.concatenate([numbers for numbers, _ in parts])
    return columns(concatenate([part for _, part in parts]), np.argsort(numbers))


def by_columns(x: Vector) -> Vector:
    """A copy of a block that holds one contiguous vector after another; JAX lays arrays out itself."""
    if array_api_compat.is_jax_array(x):
        return x
    xp = array_api_compat.array_namespace(x)
    rows = xp.empty((x.shape[1], x.shape[0]), dtype=x.dtype, device=array_api_compat.device(x))
    rows[...] = x.T
    return rows.T


def gram(x: Vector, y: Vector) -> NDArray[np.float64]:
    """``xᵀ y`` of blocks ``(P, k)`` and ``(P, m)``, shape ``(k, m)``.

    Slices are summed in float64, so that rounding grows with their length and not with P.
    """
    if array_api_compat.is_jax_array(x) and x.shape[1] > y.shape[1]:
        # XLA is slower by a multiple where the left factor is the wider one.
        return gram(y, x).T
    with np.errstate(all="ignore"):
        sums = _fused(_partial_grams, x)(x, y)
    return np.asarray(np.sum(to_numpy(sums), axis=0, dtype=np.float64))


def _partial_grams(x: Vector, y: Vector) -> Vector:
    xp = array_api_compat.array_namespace(x, y)
    return xp.stack([_matmul(wide(x[rows]).T, wide(y[rows])) for rows in _slices(x, _SUMMED)])


def add_product(y: Vector, x: Vector, matrix: NDArray[np.float64]) -> Vector:
    """``y + x matrix`` of blocks and a small host matrix, written into ``y`` where its type allows."""
    if not array_api_compat.is_writeable_array(y):
        return _fused(_plus_product, y)(y, x, _left(matrix, x))
    for rows in _slices(y, _HOST_SLICE if _on_host(y) else _DEVICE_SLICE):
        y[rows] += _product(x[rows], matrix)
    return y


def multiply(x: Vector, matrix: NDArray[np.float64]) -> Vector:
    """``x matrix`` of a block and a host matrix ``(k, m)``, m ≤ k, over ``x`` where its type allows."""
    if not array_api_compat.is_writeable_array(x):
        return _product(x, matrix)
    for rows in _slices(x, _HOST_SLICE if _on_host(x) else _DEVICE_SLICE):
        x[rows, : matrix.shape[1]] = _product(x[rows], matrix)
    return x[:, : matrix.shape[1]]


def _product(x: Vector, matrix: NDArray[np.float64]) -> Vector:
    return _fused(_from_left, x)(x, _left(matrix, x))


def _left(matrix: NDArray[np.float64], x: Vector) -> Any:
    """The transpose of a host matrix, in a form that multiplies ``xᵀ``."""
    left = np.ascontiguousarray(matrix.T)
    if array_api_compat.is_jax_array(x):
        return left.astype(_wide_dtype(x), copy=False)  # goes to the device with what it multiplies
    xp = array_api_compat.array_namespace(x)
    return xp.asarray(left, dtype=_wide_dtype(x), device=array_api_compat.device(x))


def _from_left(x: Vector, left: Any) -> Vector:
    """``x leftᵀ``."""
    xp, terms = array_api_compat.array_namespace(x), wide(x)
    if array_api_compat.is_jax_array(x):
        return xp.astype(_matmul(terms, left.T), x.dtype)
    # Written from the left, the product keeps one contiguous vector after another.
    return xp.astype(_matmul(left, terms.T).T, x.dtype, copy=False)


def _plus_product(y: Vector, x: Vector, left: Any) -> Vector:
    return y + _from_left(x, left)


def _matmul(x: Vector, y: Vector) -> Vector:
    if array_api_compat.is_jax_array(y):
        # By default JAX lets accelerators round the factors to 10 bits or fewer.
        return array_api_compat.array_namespace(y).matmul(x, y, precision="highest")
    return x @ y
