"""Passes over data that stays as it is: how it is cut, and which kind of product each batch takes."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from ihvp import algebra
from ihvp.backend import Batch, Fusible, Matvec, Vector
from ihvp.data import Piece, arrays_of
from ihvp.memory import free_memory, on_host
from ihvp.objective import Objective, Term

# So many rows tell how much memory an example takes.
_PROBED = 512
# On a processor pieces whose linearisation stays in the last cache are up to 1.5 times as fast as one large
# batch, unless their time goes to the vectors that each of them reads and writes. Measured with networks of
# P = 2,410 to 5.8e6 on 1,800 to 50,000 examples: within 1.2 times the time of the best cut.
_PIECE_BYTES, _PIECE_VECTORS = 1 << 24, 12
# On another device only memory bounds a piece. Where the whole exceeds the budget, so many pieces fill it.
_PIECES_IN_BUDGET = 8
# One compiled loop is up to 2.8 times as fast as calls of linearised products for batches of up to so many
# examples; from 512 on it takes 1.1 to 1.4 times as long, because linearised products do less.
_LOOPED_ROWS = 128
# The part of the free memory that is used by default, and the budget where the device does not tell.
_SHARE, _UNKNOWN = 2, 1 << 30


@dataclass(frozen=True)
class Ways:
    """How a matrix is multiplied with."""

    once: Callable[[Batch, Vector], Vector]  # the product of a batch
    linearise: Callable[[Batch], Matvec] | None = None  # what serves many products with it
    loop: Callable[[Batch, Vector, int], Vector] | None = None  # the sum over its pieces of one size


class Passes:
    """Products with a curvature matrix over one and the same data, batch by batch.

    Batches stay linearised as far as the budget goes. Where the backend has a loop for batches of one size,
    it takes small ones, and larger ones if they do not all fit. Data that is one batch without a
    ``batch_size`` is cut where that is faster and its examples add up. The data is ``lasting``, and the loss
    is verified.
    """

    def __init__(self, objective: Objective, ways: Ways, budget: int | None) -> None:
        self._objective, self._ways, self._batches = objective, ways, objective.batches
        self._subject = (objective.params, objective.loss, objective.batches)
        self._linearised = _LinearisedBatches(objective, ways, budget)
        self._weights: dict[int, tuple[Piece, float]] = {}
        if next(islice(self._batches.pieces(), 1, None), None) is not None:
            objective.require_additive()
        if self._batches.in_memory and self._batches.batch_size is None:
            self._cut()
        self._looped = self._choose_loop()
        pieces = list(islice(self._batches.pieces(), 2)) if self._batches.in_memory else []
        self._piece = pieces[0] if len(pieces) == 1 else None

    def belong_to(self, objective: Objective) -> bool:
        """Whether the objective's parameters, loss and data are the objects that they were."""
        subject = (objective.params, objective.loss, objective.batches)
        return all(mine is its for mine, its in zip(self._subject, subject, strict=True))

    def whole(self) -> Fusible | None:
        """All the data as one linearised batch, if it is one in memory and more can be compiled with it."""
        if self._piece is None:
            return None
        matvec = self._linearised.get(0, self._piece)
        return matvec if isinstance(matvec, Fusible) else None

    def terms(self, v: Vector) -> Iterator[Term]:
        """Yields the mean (or sum) of the products of some examples, their number, and what they weigh."""
        for place, piece in enumerate(self._batches.pieces()):
            if place >= self._looped:
                weight = self._weight(place, piece)
                yield self._product(place, piece, v) if weight else None, piece.count, weight
            elif place == 0:
                count = self._looped * piece.count
                yield self._loop(piece.count, v), count, count

    def _weight(self, place: int, piece: Piece) -> float:
        weighting = self._objective.weighting
        if weighting.function is None:
            return piece.count
        known = self._weights.get(place)
        if known is None or not known[0].is_same(piece):
            known = self._weights[place] = piece, weighting.total(piece.take(), piece.count)
        return known[1]

    def _product(self, place: int, piece: Piece, v: Vector) -> Vector:
        matvec = self._linearised.get(place, piece)
        return self._ways.once(piece.take(), v) if matvec is None else matvec(v)

    def _loop(self, size: int, v: Vector) -> Vector:
        objective = self._objective
        assert self._ways.loop is not None  # or no piece would be looped
        total = self._ways.loop(objective.batches.data, v, size)
        return algebra.scale(total, 1 / self._looped) if objective.reduction == "mean" else total

    def _cut(self) -> None:
        probe = next(replace(self._batches, batch_size=_PROBED).pieces())
        try:
            self._linearised.get(0, probe)
        except Exception:
            # Rows that are no examples need not work; all of them must.
            if probe.count == probe.rows:
                raise
        size = self._best_size(probe.rows)
        if size < probe.rows and self._objective.adds_up(size):
            self._batches = replace(self._batches, batch_size=size)
        elif probe.count == probe.rows:
            return
        self._linearised.clear()

    def _best_size(self, rows: int) -> int:
        linearised, space = self._linearised, self._objective.space
        whole = rows * (linearised.bytes_each or 0.0)
        piece: float = max(_PIECE_BYTES, _PIECE_VECTORS * space.size * space.itemsize)
        if not on_host(space):
            fits = linearised.has_room_for(rows)
            piece = whole if fits else max(piece, linearised.budget // _PIECES_IN_BUDGET)
        return math.ceil(rows / max(1, round(whole / max(1, piece))))

    def _choose_loop(self) -> int:
        """How many pieces, from the first on, go through one compiled loop."""
        if self._objective.weighting.function is not None:
            return 0  # the loop adds up means that count alike
        if not self._batches.in_memory or self._ways.loop is None:
            return 0
        first = next(self._batches.pieces())
        count = first.rows // first.count
        if count < 2 or not self._can_be_looped():
            return 0
        if self._ways.linearise is not None and first.count > _LOOPED_ROWS:
            self._linearised.get(0, first)
            if self._linearised.has_room_for(first.rows):
                return 0
        self._linearised.clear()
        return count

    def _can_be_looped(self) -> bool:
        """Whether the data is numbers, and where the products are made, so that all of it may be there."""
        arrays = [array for _, array in arrays_of(self._batches.data)]
        return all(
            not isinstance(array, np.ndarray)
            or (array.dtype.kind in "biufc" and self._objective.backend.device == "cpu")
            for array in arrays
        )


class _LinearisedBatches:
    """The linearised batches of an objective at its parameters, by their place in a pass over the data.

    They keep ``budget`` bytes, by default half of what is free on the device: one that does not tell its
    ``nbytes`` takes all that is left. ``bytes_each`` is what an example of the last batch takes, if told.
    """

    def __init__(self, objective: Objective, ways: Ways, budget: int | None) -> None:
        if budget is None:
            free = free_memory(objective.space)
            budget = _UNKNOWN if free is None else free // _SHARE
        self.budget = budget
        self.bytes_each: float | None = None
        self._linearise, self._left = ways.linearise, budget
        self._kept: dict[int, tuple[Piece, Matvec, int]] = {}
        self._lock = threading.RLock()

    def get(self, place: int, piece: Piece) -> Matvec | None:
        """The linearised batch, if it is kept or the budget has room for it."""
        with self._lock:
            return self._get(place, piece)

    def _get(self, place: int, piece: Piece) -> Matvec | None:
        if place in self._kept:
            known, matvec, nbytes = self._kept[place]
            if known.is_same(piece):
                return matvec
            # The user has put another batch there.
            del self._kept[place], matvec
            self._left += nbytes
        expected = (self.bytes_each or 0.0) * piece.count
        if self._linearise is None or self._left == 0 or expected > self._left:
            return None
        matvec = self._linearise(piece.take())
        told = getattr(matvec, "nbytes", None)
        self.bytes_each = None if told is None else told / piece.count
        nbytes = self._left if told is None else told
        if nbytes <= self._left:
            self._kept[place] = (piece, matvec, nbytes)
            self._left -= nbytes
        return matvec

    def has_room_for(self, examples: int) -> bool:
        """Whether linearisations of so many examples fit in the budget."""
        return self.bytes_each is not None and self.bytes_each * examples <= self.budget

    def clear(self) -> None:
        """Forget all batches."""
        self._kept.clear()
        self._left = self.budget
