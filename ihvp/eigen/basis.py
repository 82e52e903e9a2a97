"""An orthonormal basis that grows by one vector at a time."""

from __future__ import annotations

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
    """Orthonormal vectors as the columns of one block that is allocated once.

    Parameters
    ----------
    space : VectorSpace
        Where the vectors live.
    capacity : int
        The most vectors.
    dtype
        Of the block.

    Attributes
    ----------
    size : int
        The vectors that it holds.
    """

    def __init__(self, space: VectorSpace, capacity: int, dtype: Any) -> None:
        # One contiguous vector after another.
        self._block = space.xp.zeros((capacity, space.size), dtype=dtype, device=space.device).T
        self.size = 0

    def append(self, v: Vector) -> None:
        """Take in a unit vector that is orthogonal to the others."""
        if array_api_compat.is_writeable_array(self._block):
            self._block[:, self.size] = v
        else:
            xp = array_api_compat.array_namespace(v)
            places = xp.arange(self._block.shape[1], device=array_api_compat.device(v))
            self._block = xp.where(places == self.size, v[:, None], self._block)
        self.size += 1

    def orthogonalise(self, w: Vector) -> tuple[Vector, NDArray[np.float64], float]:
        """What of ``w`` is orthogonal to the basis, the coefficients of the rest, and the norm of the first.

        Classical Gram–Schmidt, repeated where a pass has cancelled digits: twice is enough unless ``w`` lies
        in the span (Daniel, Gragg, Kaufman and Stewart, Mathematics of Computation 30, 1976). ``w`` is given
        up.
        """
        coefficients, norm = np.zeros(self.size), float(algebra.norms(w))
        for _ in range(_MOST_PASSES):
            before = norm
            block, used = w[:, None], self._used()
            projections = algebra.gram(used, block)
            w = algebra.add_product(block, used, -projections)[:, 0]
            coefficients += projections[: self.size, 0]
            norm = float(algebra.norms(w))
            if norm >= _CANCELLED * before:
                break
        return w, coefficients, norm

    def combinations(self, matrix: NDArray[np.float64]) -> Vector:
        """The basis times ``matrix`` ``(size, k)``, as a new block ``(P, k)``."""
        return combinations(self._used(), self._padded(matrix))

    def rotate(self, matrix: NDArray[np.float64]) -> None:
        """Replace the basis by its product with ``matrix`` ``(size, m)``, of orthonormal columns."""
        self.size, padded = matrix.shape[1], self._padded(matrix)
        if array_api_compat.is_writeable_array(self._block):
            algebra.multiply(self._block[:, : matrix.shape[0]], matrix)
        else:
            unused = np.zeros((padded.shape[0], padded.shape[0] - self.size))
            self._block = algebra.multiply(self._block, np.hstack([padded, unused]))

    def _used(self) -> Vector:
        """The vectors, and where each new shape would cost a compilation, the zeros after them."""
        if array_api_compat.is_writeable_array(self._block):
            return self._block[:, : self.size]
        return self._block

    def _padded(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        if array_api_compat.is_writeable_array(self._block):
            return matrix
        return np.vstack([matrix, np.zeros((self._block.shape[1] - matrix.shape[0], matrix.shape[1]))])


def combinations(block: Vector, matrix: NDArray[np.float64]) -> Vector:
    """``block @ matrix`` for a small host matrix, as a new block."""
    xp = array_api_compat.array_namespace(block)
    shape = (matrix.shape[1], block.shape[0])
    zeros = xp.zeros(shape, dtype=block.dtype, device=array_api_compat.device(block)).T
    return algebra.add_product(zeros, block, matrix)
