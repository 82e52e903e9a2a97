"""What is verified: a loss at its parameters, and how its value over a batch is made of examples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ihvp import algebra
from ihvp.backend import Batch, CurvatureBackend, Params, Vector
from ihvp.space import VectorSpace
from ihvp.weighting import Weighting


@dataclass(frozen=True, eq=False)
class Subject:
    """A loss at its parameters.

    Parameters
    ----------
    backend : CurvatureBackend
    loss : callable
    params : Params
    space : VectorSpace
        Of the parameters.
    reduction : {"mean", "sum"}
        What the loss does over its batch.
    weighting : Weighting
        What its examples weigh.
    """

    backend: CurvatureBackend
    loss: Any
    params: Params
    space: VectorSpace
    reduction: str
    weighting: Weighting

    def gradient(self, batch: Batch) -> Vector:
        """``∇ loss(params, batch)``, ``(P,)``."""
        return self.backend.grad(self.loss, self.params, batch)

    def nearby(self, distance: float | None = None) -> Subject:
        """The loss at a random point, where what cancels at an optimum does not.

        Parameters
        ----------
        distance : float, optional
            The standard deviation of each entry's change; by default a tenth of the entries' root mean
            square.
        """
        flat = self.backend.flatten(self.params)
        if distance is None:
            distance = 0.1 * float(algebra.norms(flat)) / self.space.size**0.5 or 1.0
        noise = distance * np.random.default_rng(0).standard_normal(self.space.size)
        return replace(self, params=self.backend.unflatten(flat + self.space.asarray(noise), self.params))
