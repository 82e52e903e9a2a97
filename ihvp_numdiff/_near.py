"""Differences of the gradient between points on either side of the parameters.

Beside what the gradient itself needs, they hold two vectors over numpy arrays, the point and the first
gradient, and the parameters as a third over another backend.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np

from ihvp.backend import Params, Vector
from ihvp_numdiff._arrays import epsilon, flatten, floating_arrays, unflatten, vector_dtype
from ihvp_numdiff._difference import norm
from ihvp_numdiff._gradient import flatten_gradient, subtract_gradient

T = TypeVar("T")
TakeGradient = Callable[[Params, Callable[[Any], T]], T]
"""``take_gradient(arrays, use)``: what ``use`` makes of the gradient at these arrays."""


class Near(Protocol):
    """The surroundings of the parameters x."""

    size: int  # P
    dtype: Any  # that of x as one vector
    epsilon: float  # the relative precision of x

    @property
    def arrays(self) -> list[Vector]:
        """The parts of x, in order."""

    def norm(self) -> float:
        """``‖x‖₂``."""

    def rounding(self) -> float:
        """``ε ‖g(x)‖₂``, what the last rounding of a gradient costs."""

    def difference(self, v: Vector, scale: float, step: float) -> Vector:
        """``g(x + d) − g(x − d)`` for ``d = step (v / scale)``, a new vector ``(P,)``."""


class NearArrays:
    """The surroundings of numpy arrays, nested as the gradient function takes them.

    Points are laid out array by array, so that x is never copied.
    """

    def __init__(self, take_gradient: TakeGradient[Any], params: Params) -> None:
        self._take_gradient, self._params = take_gradient, params
        self._leaves = floating_arrays(params)
        self.size = sum(array.size for array in self._leaves)
        self.dtype = vector_dtype(self._leaves)
        self.epsilon = epsilon(self._leaves)

    @property
    def arrays(self) -> list[Vector]:
        return [array.reshape(-1) for array in self._leaves]

    def norm(self) -> float:
        return math.hypot(*(norm(array) for array in self.arrays if array.size))

    def rounding(self) -> float:
        # A copy, as every point is, for a gradient that writes to its argument.
        point = unflatten(flatten(self._params), self._params)
        gradient: np.ndarray = self._take_gradient(
            point, lambda gradient: flatten_gradient(gradient, self._params)
        )
        return self.epsilon * norm(gradient)

    def difference(self, v: Vector, scale: float, step: float) -> Vector:
        point = np.empty(self.size, self.dtype)
        total: np.ndarray = self._take_gradient(
            self._shifted(point, v, scale, step), lambda gradient: flatten_gradient(gradient, self._params)
        )
        self._take_gradient(
            self._shifted(point, v, scale, -step),
            lambda gradient: subtract_gradient(total, gradient, self._params),
        )
        return total

    def _shifted(self, point: np.ndarray, v: Vector, scale: float, step: float) -> Params:
        if scale == 1.0:
            np.multiply(v, step, out=point)
        else:
            np.divide(v, scale, out=point)
            point *= step
        start = 0
        for array in self._leaves:
            piece = point[start : start + array.size].reshape(array.shape)
            piece += array
            start += array.size
        return unflatten(point, self._params)


class NearVector:
    """The surroundings of a vector of another backend, with the gradient as a function of it."""

    def __init__(self, gradient: Callable[[Vector], Vector], x: Vector, epsilon: float) -> None:
        self._gradient, self._x = gradient, x
        self.size, self.dtype, self.epsilon = x.shape[0], x.dtype, epsilon

    @property
    def arrays(self) -> list[Vector]:
        return [self._x]

    def norm(self) -> float:
        return norm(self._x)

    def rounding(self) -> float:
        return self.epsilon * norm(self._gradient(self._x))

    def difference(self, v: Vector, scale: float, step: float) -> Vector:
        total = self._gradient(self._shifted(v, scale, step))
        total -= self._gradient(self._shifted(v, scale, -step))
        return total

    def _shifted(self, v: Vector, scale: float, step: float) -> Vector:
        point = v * step if scale == 1.0 else v / scale * step
        point += self._x
        return point
