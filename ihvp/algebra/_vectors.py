"""Dot products and updates of vectors, and of blocks column by column."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas

from ihvp.algebra._arrays import as_like, fused, on_host, slices, summed, to_numpy
from ihvp.algebra._blocks import total
from ihvp.backend import Vector


def dots(x: Vector, y: Vector, parts: Any = None) -> NDArray[np.float64]:
    """``xᵀ y`` of two vectors, shape ``()``, or column by column of two blocks, shape ``(k,)``.

    Large and tiny entries are scaled first where their products would leave the range of the dtype.

    ``parts`` are the :func:`dot_parts` of x and y, where they are known.
    """
    products = total(dot_parts(x, y) if parts is None else parts)
    if _in_range(products, x):
        return products
    (scale_x, x), (scale_y, y) = scaled(x), scaled(y)
    with np.errstate(all="ignore"):
        return np.asarray(scale_x * scale_y * total(dot_parts(x, y)))


def norms(x: Vector, parts: Any = None) -> NDArray[np.float64]:
    """``‖x‖₂`` of a vector, shape ``()``, or of each column, shape ``(k,)``, over the dtype's whole range.

    ``parts`` are the :func:`dot_parts` of x with itself, where they are known.
    """
    squares = total(dot_parts(x, x) if parts is None else parts)
    if _in_range(squares, x):
        return np.asarray(np.sqrt(squares))
    scale, x = scaled(x)
    return np.asarray(scale * np.sqrt(total(dot_parts(x, x))))


@fused()
def dot_parts(x: Vector, y: Vector) -> Any:
    """The sums of products of each slice, ``(slices,)`` or ``(slices, k)``, on the device.

    They are summed up in float64, by :func:`dots` or :func:`norms`, so that rounding does not grow with P.
    A function that is :func:`fused` returns them with what else it computes.
    """
    xp = array_api_compat.array_namespace(x)
    if array_api_compat.is_jax_array(x):
        # XLA sums in parts by itself, and would copy each slice first.
        return xp.sum(x * y, axis=0)[None]
    with np.errstate(all="ignore"):
        if x.ndim == 1 and on_host(x):
            # The host's libraries add up in the vectors' own precision.
            return np.asarray([float(x[rows] @ y[rows]) for rows in summed(x)])
        if x.ndim == 1:
            return (x @ y)[None]
        return xp.stack([xp.linalg.vecdot(x[rows], y[rows], axis=0) for rows in summed(x)])


def _in_range(products: NDArray[np.float64], like: Vector) -> bool:
    """Whether sums of products neither overflowed nor lost digits to underflow; exact zeros are in doubt."""
    info = array_api_compat.array_namespace(like).finfo(like.dtype)
    lowest = float(info.smallest_normal) / float(info.eps)
    return bool(np.all(np.isfinite(products) & (np.abs(products) >= lowest)))


def scaled(x: Vector) -> tuple[NDArray[np.float64], Vector]:
    """``x`` divided, without rounding, by a power of two for each column, such that its entries are up to 2.

    The power comes first; it is 1 where no entry is finite and other than 0.
    """
    xp = array_api_compat.array_namespace(x)
    largest = np.asarray(to_numpy(xp.max(xp.abs(x), axis=0)), dtype=np.float64)
    scale = np.exp2(np.floor(np.log2(np.where((largest > 0) & np.isfinite(largest), largest, 1.0))))
    return scale, x / coefficients(scale, x)


def coefficients(values: NDArray[np.float64], like: Vector) -> Any:
    """Host scalars in a form that multiplies ``like``: a float for a vector, ``(k,)`` for a block."""
    if like.ndim == 1:
        return float(values.item())
    if array_api_compat.is_jax_array(like):
        return np.asarray(values, dtype=like.dtype)  # goes to the device with what it multiplies
    return as_like(values, like)


@fused(0)
def axpy(y: Vector, a: Any, x: Vector) -> Vector:
    """``y + a x``, written into ``y`` where its type allows; use the result, never ``y`` again.

    ``a`` is a float, or the :func:`coefficients` of a block.
    """
    if array_api_compat.is_torch_array(y):
        columnwise = array_api_compat.is_torch_array(a)
        return y.addcmul_(x, a) if columnwise else y.add_(x, alpha=_in_torch(a, y))
    if not array_api_compat.is_writeable_array(y):
        return y + a * x
    if _is_plain(y) and _is_plain(x) and y.dtype == x.dtype:
        # One pass, where numpy would write the product first.
        return (blas.saxpy if y.dtype == np.float32 else blas.daxpy)(x, y, a=a)
    for rows in slices(y):
        y[rows] += a * x[rows]
    return y


def _in_torch(a: float, like: Vector) -> float:
    """The number, infinite where it is beyond those of the dtype: torch raises there what nobody expects."""
    largest = array_api_compat.array_namespace(like).finfo(like.dtype).max
    return math.copysign(math.inf, a) if abs(a) > largest else a


def _is_plain(x: Vector) -> bool:
    """Whether BLAS can write to an array: a vector of numpy's, in one piece."""
    return (
        isinstance(x, np.ndarray)
        and x.ndim == 1
        and x.size > 0
        and x.flags.carray
        and x.dtype in (np.float32, np.float64)
    )


@fused(0, fixed=(4,))
def shifted(product: Vector, v: Vector, factor: float, shift: float, measure: Any) -> tuple[Vector, Any]:
    """``factor product + shift v``, and ``measure(v, …)`` of it: :func:`dot_parts`, ``gram_parts`` or None.

    Maps that are :class:`ihvp.backend.Fusible` have it compiled with their product. What is measured is
    finite only if the product is.
    """
    if array_api_compat.is_jax_array(product):
        product = factor * product + shift * v
    else:
        product = product if factor == 1 else scale(product, factor)
        if v.ndim == 1 and measure is dot_parts and isinstance(product, np.ndarray):
            return product, in_slices(lambda rows: axpy(product[rows], shift, v[rows]) @ v[rows], product)
        product = axpy(product, shift, v) if shift else product
    return product, measure and measure(v, product)


def in_slices(step: Callable[[slice], Any], like: NDArray[Any]) -> NDArray[np.float64]:
    """The numbers that a step gives for the slices of numpy's vectors, which stay in the cache during it."""
    with np.errstate(all="ignore"):
        return np.asarray([float(step(rows)) for rows in slices(like)])


@fused(0)
def xpay(y: Vector, a: Any, x: Vector) -> Vector:
    """``a y + x``, written into ``y`` where its type allows; use the result, never ``y`` again."""
    if not array_api_compat.is_writeable_array(y):
        return a * y + x
    if array_api_compat.is_torch_array(y):
        xp = array_api_compat.array_namespace(y)  # which needs one pass
        columnwise = array_api_compat.is_torch_array(a)
        return xp.addcmul(x, y, a, out=y) if columnwise else xp.add(x, y, alpha=_in_torch(a, y), out=y)
    y *= a
    y += x
    return y


@fused(0)
def scale(y: Vector, a: Any) -> Vector:
    """``a y``, written into ``y`` where its type allows; use the result, never ``y`` again."""
    if not array_api_compat.is_writeable_array(y):
        return a * y
    y *= a
    return y


def subtract_from(v: Vector, y: Vector) -> Vector:
    """``v − y``, written into ``y`` where its type allows; use the result, never ``y`` again."""
    return xpay(y, -1.0, v)
