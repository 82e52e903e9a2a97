"""A multiple of the identity."""

from __future__ import annotations

from ihvp.backend import Vector
from ihvp.operators.base import LinearOperator
from ihvp.space import VectorSpace


class ScalarMatrix(LinearOperator):
    """``c I``: what stands in the place of a curvature for methods that take gradients as they are.

    Parameters
    ----------
    space : VectorSpace
    value : float
        c.

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
