"""Products of tall and skinny blocks with each other and with small matrices on the host."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp.algebra._arrays import as_like, fused, slices, summed, to_numpy
from ihvp.backend import Vector

# XLA makes one pass of a sum of so many multiples; a matrix product is written to memory before it is added,
# which costs less than the terms where it stays in the cache: up to so many entries.
_TERMS, _CACHED = 32, 1 << 16


def gram(x: Vector, y: Vector) -> NDArray[np.float64]:
    """``xᵀ y`` of blocks ``(P, k)`` and ``(P, m)``, shape ``(k, m)``.

    Slices are summed in float64, so that rounding grows with their length and not with P.
    """
    if array_api_compat.is_jax_array(x) and x.shape[1] > y.shape[1]:
        # XLA is slower by a multiple where the left factor is the wider one.
        return gram(y, x).T
    return total(gram_parts(x, y))


@fused()
def gram_parts(x: Vector, y: Vector) -> Any:
    """The products of each slice, ``(slices, k, m)``, on the device; what :func:`gram` adds up."""
    xp = array_api_compat.array_namespace(x, y)
    with np.errstate(all="ignore"):
        return xp.stack([matmul(x[rows].T, y[rows]) for rows in summed(x)])


def total(parts: Any) -> NDArray[np.float64]:
    """The sum, on the host, of what :func:`gram_parts` gives, or ``dot_parts``."""
    with np.errstate(all="ignore"):
        return np.asarray(np.sum(to_numpy(parts), axis=0, dtype=np.float64))


def add_product(y: Vector, x: Vector, matrix: NDArray[np.float64]) -> Vector:
    """``y + x matrix`` of blocks and a small host matrix, written into ``y`` where its type allows."""
    return plus_product(y, x, small(matrix, x))


@fused(0)
def plus_product(y: Vector, x: Vector, matrix: Any) -> Vector:
    """:func:`add_product` with a matrix that is on the device, made by :func:`small`."""
    if not array_api_compat.is_writeable_array(y):
        return y + _product(x, matrix)
    if array_api_compat.is_torch_array(y) and y.dtype == x.dtype == matrix.dtype:
        y.T.addmm_(matrix.T, x.T)
        return y
    for rows in slices(y):
        y[rows] += _product(x[rows], matrix)
    return y


def multiply(x: Vector, matrix: NDArray[np.float64], plus: Vector = None) -> Vector:
    """``x matrix`` of a block and a host matrix ``(k, m)``, m ≤ k, over ``x`` where its type allows.

    With a block ``plus`` ``(P, m)``, the sum of both.
    """
    return _multiply(x, small(matrix, x), plus)


@fused()
def _multiply(x: Vector, matrix: Any, plus: Vector) -> Vector:
    if not array_api_compat.is_writeable_array(x):
        return _product(x, matrix) if plus is None else _product(x, matrix) + plus
    count = matrix.shape[1]
    for rows in slices(x):
        product = _product(x[rows], matrix)
        if plus is not None:
            product += plus[rows]
        x[rows, :count] = product
    return x[:, :count]


def small(matrix: NDArray[np.float64], x: Vector) -> Any:
    """A host matrix in a form that multiplies the block ``x`` from the right."""
    if isinstance(x, np.ndarray) or array_api_compat.is_jax_array(x):
        return np.asarray(matrix, dtype=x.dtype)  # goes to the device with what it multiplies
    return as_like(np.ascontiguousarray(matrix), x)


def _product(x: Vector, matrix: Any) -> Vector:
    if array_api_compat.is_jax_array(x):
        count = x.shape[1]
        if count <= _TERMS and x.size > _CACHED:
            return sum(x[:, i, None] * matrix[i] for i in range(count))
        return matmul(x, matrix)
    # Written from the left, the product keeps one contiguous vector after another.
    return matmul(matrix.T, x.T).T


def matmul(x: Vector, y: Vector) -> Vector:
    """``x @ y``, in the full precision of their dtype."""
    if array_api_compat.is_jax_array(y):
        # By default JAX lets accelerators round the factors to 10 bits or fewer.
        return array_api_compat.array_namespace(y).matmul(x, y, precision="highest")
    return x @ y
