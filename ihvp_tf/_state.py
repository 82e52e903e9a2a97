"""Runs of a graph that leave all variables as they are: moving averages, seeds of dropout, parameters.

Other threads may read the variables at any moment. So nothing is written to them and put back: others stand
for them where the graph writes, or where it is to be evaluated at other values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

_WRITES = ("Assign", "ResourceScatter", "ResourceApply", "ResourceStridedSliceAssign", "Rng", "Stateful")


class UnchangedState:
    """Runs a graph; what it writes goes to copies of its variables.

    Integers (seeds, counters) go on from run to run out of the user's sight, so that a loss with active
    dropout still shows itself as one whose gradients differ. Graphs that write nothing cost nothing.

    ``operations`` are the types of those in the graph.
    """

    def __init__(self, concrete: Any, operations: set[str]) -> None:
        self._concrete = concrete
        self._writes = any(operation.startswith(_WRITES) for operation in operations)
        self._hidden: dict[int, Any] = {}

    def run(self, arguments: Sequence[Any], values: Iterable[tuple[Any, Any]] = ()) -> Any:
        """The results of the graph.

        ``values`` are pairs of a variable and a value, where it is to be another than the variable holds.
        """
        stand_ins = {id(variable.handle): _variable_like(variable, value) for variable, value in values}
        counted = {}
        if self._writes:
            for index, variable in enumerate(self._concrete.variables):
                if id(variable.handle) not in stand_ins:
                    copy = _variable_like(variable, self._hidden.get(index, variable))
                    stand_ins[id(variable.handle)] = copy
                    if copy.dtype.is_integer:
                        counted[index] = copy
        if not stand_ins:
            return self._concrete(*arguments)
        handles = {handle: variable.handle for handle, variable in stand_ins.items()}
        kind = self._concrete.function_type
        captured = [handles.get(id(tensor), tensor) for tensor in self._concrete.captured_inputs]
        try:
            return self._concrete._call_flat(kind.unpack_inputs(kind.bind(*arguments)), captured)
        finally:
            self._hidden |= {index: copy.read_value() for index, copy in counted.items()}


def _variable_like(variable: Any, value: Any) -> Any:
    with tf.device(variable.device):
        tensor = tf.cast(value, variable.dtype)
        tensor.shape.assert_is_compatible_with(variable.shape)
        return tf.Variable(tensor, trainable=False, shape=variable.shape)
