"""CG with full reorthogonalisation, over a space that several solves share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.solvers.base import CountedOperator, Log
from ihvp.solvers.nystrom import Sketch
from ihvp.solvers.sweep import Start, Sweep


class Augmented(Sweep):
    """Solves within the span of a sketch, extends it by the residuals, and leaves the rest to another sweep.

    The sketch grows by residuals where it may, and preconditions the other sweep, which ``start`` makes.
    """

    def __init__(
        self,
        sketch: Sketch,
        start: Start,
        numbers: NDArray[np.intp],
        x: Vector,
        r: Vector,
        targets: NDArray[np.float64],
    ) -> None:
        super().__init__(numbers, x, targets)
        self.sketch, self.start, self.r = sketch, start, r

    def run(self, operator: CountedOperator, limit: int, log: Log) -> None:
        sketch = self.sketch
        self.largest = max(self.largest, sketch.highest)
        self.park(np.atleast_1d(algebra.norms(self.r)) <= self.targets, "reached")
        for directions, products in sketch.pairs:
            if self.places.size:
                self._move(directions, products)
        while self.places.size and sketch.grows and sketch.rank < sketch.most and log.goes_on(limit):
            directions, products, positive = sketch.extend(operator, _block(self.r))
            if not positive or not directions.shape[1]:
                break  # the other sweep treats curvature ≤ 0 as the caller wants it
            self.largest = max(self.largest, sketch.highest)
            numbers = self.numbers[self.places]
            log.step(numbers, self._move(directions, products))
        if self.places.size:
            self._delegate(operator, limit, log)

    def narrow(self, stay: NDArray[np.bool_]) -> None:
        self.r = algebra.keep(self.r, stay)

    def _move(self, directions: Vector, products: Vector) -> NDArray[np.float64]:
        """Make the residuals orthogonal to conjugate directions; their norms."""
        x, r = _block(self.x), _block(self.r)
        steps = algebra.gram(directions, r)
        x, r = algebra.add_product(x, directions, steps), algebra.add_product(r, products, -steps)
        self.x, self.r = (x[:, 0], r[:, 0]) if self.r.ndim == 1 else (x, r)
        norms = np.atleast_1d(algebra.norms(self.r))
        self.park(norms <= self.targets[self.places], "reached")
        return norms

    def _delegate(self, operator: CountedOperator, limit: int, log: Log) -> None:
        places = self.places
        rest = self.start(self.numbers[places], self.x, self.r, self.targets[places])
        self.x = self.r = None
        rest.largest = self.largest
        rest.run(operator, limit, log)
        self.largest = rest.largest
        self.reasons[places], self.direction = rest.reasons, rest.direction
        self._parked += [(places[part], x) for part, x in rest.parts()]
        self.places = places[:0]


def _block(x: Vector) -> Vector:
    return x[:, None] if x.ndim == 1 else x
