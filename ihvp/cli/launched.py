"""Several processes of one command, as ``torchrun`` starts them: each takes its part of the data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ihvp._inference import owners_of
from ihvp._registry import usable_plugin
from ihvp.backend import Batch
from ihvp.data import Batches, take_examples
from ihvp.errors import MissingCapability
from ihvp.objective import Objective


@contextmanager
def shared(objective: Objective) -> Iterator[Objective]:
    """The objective over this process's part of the data, all of which each process has made.

    Parts follow one another in the order of the ranks, so that examples keep their numbers. One whose module
    has connected the processes already is left as it is. If one process fails, all do.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    with ExitStack() as connection:
        if started > 1 and objective.processes.count == 1:
            whole, total = objective.batches, objective.num_examples
            connection.enter_context(_connected(objective, started))
            objective = objective.at(objective.params)  # which looks for its processes
            rank, count = objective.processes.rank, objective.processes.count
            objective = objective.on(_rows(whole, total * rank // count, total * (rank + 1) // count))
        with objective.processes.together():
            yield objective
            objective.processes.each(0)  # what the first process writes is there when the others end


def _connected(objective: Objective, started: int) -> AbstractContextManager[None]:
    for name in owners_of(objective.params):
        if connected := usable_plugin(name).connected:
            return connected(objective.backend.device)
    raise MissingCapability(
        type(objective.backend).__name__,
        "reduce",
        f"A launcher started {started} processes, and they cannot add up what they compute. Start one.",
    )


def _rows(batches: Batches, start: int, stop: int) -> Any:
    """Data that holds the examples ``start:stop``."""
    if batches.in_memory:
        return take_examples(batches.data, start, stop)
    rows = Rows(batches, start, stop)
    return list(rows) if batches.lasting else rows


@dataclass(frozen=True)
class Rows:
    """Examples ``start:stop`` of some batches, at each pass."""

    batches: Batches
    start: int
    stop: int

    def __iter__(self) -> Iterator[Batch]:
        first = 0
        for piece in self.batches.pieces():
            start, stop = max(self.start - first, 0), min(self.stop - first, piece.count)
            if start < stop:
                yield replace(piece, start=piece.start + start, stop=piece.start + stop).take()
            first += piece.count
            if first >= self.stop:
                return
