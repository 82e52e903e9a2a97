"""Curvature whose products with a batch can be prepared once and kept for the next ones."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from ihvp.arguments import check_integer
from ihvp.backend import Batch, Vector
from ihvp.objective import Objective, Term
from ihvp.operators.curvature import CurvatureOperator
from ihvp.operators.passes import Passes, Ways


class KeptCurvature(CurvatureOperator):
    """A curvature operator that keeps linearised batches, up to ``memory_budget`` bytes."""

    def __init__(self, objective: Objective, memory_budget: int | None = None) -> None:
        super().__init__(objective)
        check_integer("memory_budget", memory_budget, 0, expected="a number of bytes, or None", none=True)
        self._budget = memory_budget
        self._passes: Passes | None = None
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        # Another process, or a copy, linearises again.
        return {**self.__dict__, "_passes": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    @property
    @abstractmethod
    def _ways(self) -> Ways:
        """How it multiplies with one batch, at the objective's present parameters."""

    def batch_product(self, batch: Batch, v: Vector) -> Vector:
        return self._ways.once(batch, v)

    def terms(self, v: Vector) -> Iterator[Term] | None:
        ways = self._ways
        if ways.linearise is None and ways.loop is None:
            return None
        # Batches that come from another iterable may be others at the next pass.
        return self._terms(v) if self.objective.batches.lasting else None

    def _terms(self, v: Vector) -> Iterator[Term]:
        yield from self._current_passes().terms(v)

    def _current_passes(self) -> Passes:
        with self._lock:
            if self._passes is None or not self._passes.belong_to(self.objective):
                # What is kept goes before its memory is counted.
                self._passes = None
                self._passes = Passes(self.objective, self._ways, self._budget)
            return self._passes
