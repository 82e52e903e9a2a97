"""Operators from a matrix that is there, and from a multiple of the identity."""

from __future__ import annotations

from typing import Any

import array_api_compat

from ihvp import algebra
from ihvp.arguments import is_special, shape_of
from ihvp.backend import Vector
from ihvp.errors import VectorError, describe
from ihvp.operators.base import LinearOperator
from ihvp.space import VectorSpace


class Dense(LinearOperator):
    """A symmetric matrix ``(P, P)`` of any array library as an operator.

    Parameters
    ----------
    matrix : array
        Two-dimensional, square, of a real floating dtype. It is not copied, except from half precision
        to float32; its symmetry is not checked.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> ihvp.Dense(np.array([[2.0, 1.0], [1.0, 2.0]])) @ np.array([1.0, -1.0])
    array([ 1., -1.])
    """

    def __init__(self, matrix: Any) -> None:
        shape = shape_of(matrix) or ()
        if (
            not array_api_compat.is_array_api_obj(matrix)
            or is_special(matrix)
            or len(shape) != 2
            or shape[0] != shape[1]
            or shape[0] == 0
        ):
            raise VectorError(f"The matrix is {describe(matrix)}; expected a square 2-d array.")
        if not array_api_compat.array_namespace(matrix).isdtype(matrix.dtype, "real floating"):
            raise VectorError(f"The matrix has dtype {matrix.dtype}; expected a real floating one.")
        self.matrix = algebra.wide(algebra.without_explicit_axes(matrix))
        super().__init__(VectorSpace.of(self.matrix[:, 0]))

    def apply(self, v: Vector) -> Vector:
        return self.matrix @ v

    def to_dense(self) -> Vector:
        return self.matrix


class ScalarMatrix(LinearOperator):
    """``c I``: what stands in the place of a curvature for methods that take gradients as they are.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> ScalarMatrix(ihvp.Dense(np.eye(2)).space, 4.0) @ np.ones(2)
    array([4., 4.])
    """

    def __init__(self, space: VectorSpace, value: float = 1.0) -> None:
        super().__init__(space)
        self.value = value

    def apply(self, v: Vector) -> Vector:
        return self.value * v

    def solve_damped(self, v: Vector, damping: float) -> Vector:
        """``v / (c + λ)`` of a flat native vector or block; 0 where that is singular."""
        return 0.0 * v if self.is_singular(damping) else v / (self.value + damping)

    def is_singular(self, damping: float) -> bool:
        """Whether ``c + λ`` is 0."""
        return self.value + damping == 0
