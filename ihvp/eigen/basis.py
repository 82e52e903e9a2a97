"""An orthonormal basis that grows by one vector at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.space import VectorSpace

# A pass that leaves less than this of a vector has cancelled digits, and another one restores orthogonality.
_CANCELLED = 0.5**0.5
_MOST_PASSES = 4


class GrowingBasis:
    """Orthonormal vectors as the rows of one array that is allocated once.

    It has room for ``capacity`` vectors, and holds ``size`` of them.
    """

    def __init__(self, space: VectorSpace, capacity: int) -> None:
        self._rows = space.xp.zeros((capacity, space.size), dtype=space.dtype, device=space.device)
        self.size = 0

    def append(self, v: Vector) -> None:
        """Take in a unit vector that is orthogonal to the others."""
        self._rows = _write(self._rows, self.size, v)
        self.size += 1

    def orthogonalise(self, w: Vector) -> tuple[Vector, NDArray[np.float64], float]:
        """What of ``w`` is orthogonal to the basis, the coefficients of the rest, and the norm of the first.

        Classical Gram–Schmidt, repeated where a pass has cancelled digits: twice is enough unless ``w`` lies
        in the span (Daniel, Gragg, Kaufman and Stewart, Mathematics of Computation 30, 1976).

        ``w`` is given up.
        """
        return self._cleared(partial(_clear, w, None, self._rows), [0])

    def orthogonalise_product(
        self, followed_by: Callable[..., Any], v: Vector, since: int
    ) -> tuple[Vector, NDArray[np.float64], float]:
        """:meth:`orthogonalise` of an operator's product with ``v``, compiled with it where that can be.

        What lies along the basis is known to lie, but for rounding, along the vectors from ``since`` on: they
        alone take part in the first pass.
        """

        def first(firsts: tuple[int, ...], counts: tuple[int, ...]) -> Any:
            return followed_by(_clear, v, self._rows, firsts, fixed=counts)

        return self._cleared(first, [since, 0] if since else [0])

    def _cleared(
        self, clear: Callable[..., Any], firsts: list[int]
    ) -> tuple[Vector, NDArray[np.float64], float]:
        coefficients = np.zeros(self.size)
        for _ in range(_MOST_PASSES):
            w, projections, squares = clear(tuple(firsts), tuple(map(self._count, firsts)))
            for first, projection in zip(firsts, projections, strict=True):
                found = algebra.to_numpy(projection)[: self.size - first]
                coefficients[first:] += found
            norm = float(algebra.norms(w, squares))
            # The vectors are orthonormal: before, its square was larger by those of the projections.
            if norm >= _CANCELLED * math.hypot(norm, *found.tolist()):
                break
            clear, firsts = partial(_clear, w, None, self._rows), [0]
        return w, coefficients, norm

    def combinations(self, matrix: NDArray[np.float64]) -> Vector:
        """The basis times ``matrix`` ``(size, k)``, as a new block ``(P, k)``."""
        if array_api_compat.is_writeable_array(self._rows):
            return combinations(self._rows[: self.size].T, matrix)
        return _mixed(self._rows, self._padded(matrix)).T

    def rotate(self, matrix: NDArray[np.float64]) -> None:
        """Replace the basis by its product with ``matrix`` ``(size, m)``, of orthonormal columns."""
        before, self.size = matrix.shape
        if array_api_compat.is_writeable_array(self._rows):
            algebra.multiply(self._rows[:before].T, matrix)
            return
        # A square matrix, so that no other shape has to be compiled, clears the rest of the rows.
        unused = np.zeros((before, self._rows.shape[0] - self.size))
        self._rows = _mixed(self._rows, self._padded(np.hstack([matrix, unused])))

    def _count(self, first: int) -> int:
        """The number of vectors from this one on; all rows where each number would be compiled."""
        if first or array_api_compat.is_writeable_array(self._rows):
            return self.size - first
        # XLA copies the first rows before it multiplies them, which takes longer than the rows of zeros.
        return int(self._rows.shape[0])

    def _padded(self, matrix: NDArray[np.float64]) -> Any:
        """The transpose of a matrix ``(size, m)``, with zeros for the rows that hold no vector."""
        padded = np.zeros((matrix.shape[1], self._rows.shape[0]))
        padded[:, : matrix.shape[0]] = matrix.T
        return algebra.small(padded, self._rows)


@algebra.fused(0)
def _write(rows: Vector, place: int, v: Vector) -> Vector:
    if not array_api_compat.is_writeable_array(rows):
        return rows.at[place].set(v)
    rows[place] = v
    return rows


@algebra.fused(0, fixed=(4,))
def _clear(
    w: Vector, _: Vector, rows: Vector, firsts: tuple[int, ...], counts: tuple[int, ...]
) -> tuple[Vector, list[Vector], Any]:
    """``w`` without its projections, pass by pass, on so many rows from the first on.

    With these, and the parts of its own norm. Rows past the end are zeros.
    """
    xp, found = array_api_compat.array_namespace(rows), []
    for first, count in zip(firsts, counts, strict=True):
        if array_api_compat.is_writeable_array(rows):
            part = rows[first : first + count]
        else:
            part = rows if count == rows.shape[0] else xp.take(rows, first + xp.arange(count), axis=0)
        projections = _projections(part, w)
        found.append(projections)
        if not array_api_compat.is_writeable_array(w):
            w = w - algebra.matmul(projections, part)
        else:
            for columns in algebra.slices(w):
                w[columns] -= projections @ part[:, columns]
    return w, found, algebra.dot_parts(w, w)


def _projections(rows: Vector, w: Vector) -> Vector:
    parts = list(algebra.summed(w))
    if len(parts) > 1 and array_api_compat.is_jax_array(w):
        # XLA would copy each part of the rows, and a product of them all loses digits.
        return array_api_compat.array_namespace(w).sum(rows * w, axis=1)
    return sum(algebra.matmul(rows[:, part], w[part]) for part in parts)


@algebra.fused()
def _mixed(rows: Vector, matrix: Any) -> Vector:
    return algebra.matmul(matrix, rows)


def combinations(block: Vector, matrix: NDArray[np.float64]) -> Vector:
    """``block @ matrix`` for a small host matrix, as a new block."""
    xp = array_api_compat.array_namespace(block)
    shape = (matrix.shape[1], block.shape[0])
    zeros = xp.zeros(shape, dtype=block.dtype, device=algebra.device(block)).T
    return algebra.add_product(zeros, block, matrix)
