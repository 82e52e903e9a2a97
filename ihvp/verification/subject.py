"""What is verified: a loss at its parameters, and how its value over a batch is made of examples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ihvp import algebra
from ihvp.backend import Batch, CurvatureBackend, GradientFunction, Params, Vector
from ihvp.space import VectorSpace
from ihvp.weighting import Weighting

_FAR = 8


@dataclass(frozen=True, eq=False)
class Subject:
    """A loss at its parameters."""

    backend: CurvatureBackend
    loss: Any
    params: Params
    space: VectorSpace  # of the parameters
    reduction: str  # "mean" or "sum": what the loss does over its batch
    weighting: Weighting  # what its examples weigh

    @property
    def declared(self) -> str:
        """What the loss of a batch is said to be of its parts."""
        return "sum" if self.reduction == "sum" else "weighted mean"

    def gradient(self, batch: Batch) -> Vector:
        """``∇ loss(params, batch)``, ``(P,)``."""
        return self.backend.grad(self.loss, self.params, batch)

    def multiple_gradient(self, batch: Batch) -> Vector:
        """The gradient of three times the loss, by three: the same up to its rounding.

        A TypeError says that the loss is known by its gradient alone.
        """
        if isinstance(self.loss, GradientFunction):
            raise TypeError(self.loss)
        return self.backend.grad(lambda params, b: 3.0 * self.loss(params, b), self.params, batch) / 3.0

    def nearby(self, distance: float | None = None, seed: int = 0) -> Subject:
        """The loss at a random point, where what cancels at an optimum does not.

        ``distance`` is the standard deviation of each parameter's change; by default a tenth of their root
        mean square.
        """
        if distance is None:
            distance = 0.1 * self._scale or 1.0
        noise = distance * np.random.default_rng(seed).standard_normal(self.space.size)
        flat = self.backend.flatten(self.params) + self.space.asarray(noise)
        return replace(self, params=self.backend.unflatten(flat, self.params))

    def far(self) -> Iterator[Subject]:
        """The loss at several points where nothing is left of what was fitted.

        At each of them, a loss with a margin has no slope for half of the examples.
        """
        distance = max(1.0, 10 * self._scale)
        return (self.nearby(distance, seed) for seed in range(_FAR))

    @property
    def _scale(self) -> float:
        """The root mean square of the parameters."""
        return float(algebra.norms(self.backend.flatten(self.params))) / math.sqrt(self.space.size)
