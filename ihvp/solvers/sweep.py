"""The recurrence of a method from given iterates, on columns that it drops as they are done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.solvers.base import CountedOperator, Log


class Sweep(ABC):
    """The recurrence of a method from given iterates, on columns that it drops as they are done.

    These are the columns ``numbers`` of the system, with iterates ``x`` to start from, which are taken over,
    and residual norms to reach.
    """

    def __init__(self, numbers: NDArray[np.intp], x: Vector, targets: NDArray[np.float64]) -> None:
        self.numbers, self.targets, self.x = numbers, targets, x
        self.places = np.arange(numbers.size)  # the columns, among the k, that are still worked on
        # Why a column was left: "reached" where the recurrence claims its target.
        self.reasons = np.full(numbers.shape, "max_iterations", dtype=object)
        self.direction: Vector | None = None  # one of curvature ≤ 0 that ended the sweep
        self.largest = 0.0  # the norm of the matrix as far as products have shown it, in earlier sweeps too
        self._parked: list[tuple[NDArray[np.intp], Vector]] = []

    @abstractmethod
    def run(self, operator: CountedOperator, limit: int, log: Log) -> None:
        """Iterate until no column is left or ``log`` counts ``limit`` iterations."""

    @abstractmethod
    def narrow(self, stay: NDArray[np.bool_]) -> None:
        """Keep these columns of the blocks other than ``x``."""

    def park(self, leaving: NDArray[np.bool_], reason: str) -> None:
        """Set the iterates of these columns aside and go on without them."""
        if not np.any(leaving):
            return
        self.reasons[self.places[leaving]] = reason
        self._parked.append((self.places[leaving], algebra.keep(self.x, leaving)))
        stay = ~leaving
        self.places = self.places[stay]
        if self.places.size:
            self.x = algebra.keep(self.x, stay)
            self.narrow(stay)

    def parts(self) -> list[tuple[NDArray[np.intp], Vector]]:
        """The iterates of all columns, by their places."""
        return [*self._parked, (self.places, self.x)] if self.places.size else self._parked


Start = Callable[[NDArray[np.intp], Vector, Vector, NDArray[np.float64]], Sweep]
"""Makes a sweep from column numbers, iterates, their true residuals, and target norms."""
