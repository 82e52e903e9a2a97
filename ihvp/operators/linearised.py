"""Linearised batches, kept for the next product as far as a memory budget goes."""

from __future__ import annotations

import threading

from ihvp.backend import Matvec, SupportsLinearize
from ihvp.data import Piece
from ihvp.memory import free_memory
from ihvp.objective import Objective

# The part of the free memory that is used by default, and the budget where the device does not tell.
_SHARE, _UNKNOWN = 2, 1 << 30


class LinearisedBatches:
    """The linearised batches of an objective at its parameters, by their place in a pass over the data.

    A linearisation that does not tell its ``nbytes`` takes all that is left: no second one is kept.

    They keep ``budget`` bytes, by default half of what is free on the device. ``bytes_each`` is what an
    example of the last batch takes; None before the first, and where it is not told.
    """

    def __init__(self, objective: Objective, budget: int | None) -> None:
        if budget is None:
            free = free_memory(objective.space)
            budget = _UNKNOWN if free is None else free // _SHARE
        self.budget = budget
        self.bytes_each: float | None = None
        self._objective, self._left = objective, budget
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
        backend = self._objective.backend
        expected = (self.bytes_each or 0.0) * piece.count
        if not isinstance(backend, SupportsLinearize) or self._left == 0 or expected > self._left:
            return None
        matvec = backend.linearize(self._objective.loss, self._objective.params, piece.take())
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
