"""Several processes of one command, as ``torchrun`` starts them: each takes its part of the data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
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
    if started == 1 or objective.processes.count > 1:
        with objective.processes.together():
            yield objective
        return
    connected = [c for name in owners_of(objective.params) if (c := usable_plugin(name).connected)]
    if not connected:
        raise MissingCapability(
            type(objective.backend).__name__,
            "reduce",
            f"A launcher started {started} processes, and they cannot add up what they compute. Start one.",
        )
    total = objective.num_examples
    with connected[0](objective.backend.device):
        whole, objective = objective.batches, objective.at(objective.params)
        processes = objective.processes
        with processes.together():
            start, stop = (total * rank // processes.count for rank in (processes.rank, processes.rank + 1))
            part: Any = Rows(whole, start, stop)
            if whole.in_memory:
                part = take_examples(whole.data, start, stop)
            yield objective.on(list(part) if isinstance(whole.data, list) else part)
            processes.each(0)  # what the first process writes is there when the others end


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
