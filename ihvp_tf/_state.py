"""State that a loss changes while it runs: moving averages, seeds of dropout, counters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_WRITES = ("Assign", "ResourceScatter", "ResourceApply", "ResourceStridedSliceAssign", "Rng", "Stateful")


class UnchangedState:
    """Gives back the variables that a graph writes to, bit for bit, after each run of it.

    Integers (seeds, counters) go on from run to run out of the user's sight, so that a loss with active
    dropout still shows itself as one whose gradients differ. Graphs that write nothing cost nothing.

    Parameters
    ----------
    concrete : tf.ConcreteFunction
        The graph.
    operations : set of str
        The types of its operations.
    """

    def __init__(self, concrete: Any, operations: set[str]) -> None:
        writes = any(operation.startswith(_WRITES) for operation in operations)
        self._concrete = concrete if writes else None
        self._hidden: dict[int, Any] = {}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Runs the graph in the block."""
        if self._concrete is None:
            yield
            return
        variables = self._concrete.variables
        saved = [variable.read_value() for variable in variables]
        try:
            for index, value in self._hidden.items():
                variables[index].assign(value)
            yield
        finally:
            for index, (variable, value) in enumerate(zip(variables, saved, strict=True)):
                if variable.dtype.is_integer:
                    self._hidden[index] = variable.read_value()
                variable.assign(value)
