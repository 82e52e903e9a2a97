"""The variance about a stopped mean, whose second derivative is not that of its first.

``tf.nn.moments`` computes ``mean (y − s)²`` with ``s = tf.stop_gradient(mean y)``. The value and the
first derivative are those of the variance, because ``Σ (y − mean y) = 0``; the second derivative lacks
``−2/n² 1 1ᵀ``. Keras' normalisation of layers, groups and batches rests on it.

Where a traced graph has that form, it is traced again with ``mean y`` in the place of ``s``. Each
``tf.function`` of the user then runs as a part of that trace, so that its own traces stay as its user
made them. Other uses of ``tf.stop_gradient`` keep their meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf
from tensorflow.python.eager.polymorphic_function.autograph_util import py_func_from_autograph
from tensorflow.python.framework import op_def_library

from ihvp.shared_context import Substitution


def has_stopped_mean(graph: Any) -> bool:
    """Whether a ``GraphDef``, or a function in its library, has a variance about a stopped mean."""
    return any(map(_stopped_in, (graph.node, *(function.node_def for function in graph.library.function))))


def _stopped_in(nodes: Iterable[Any]) -> bool:
    by_name = {node.name: node for node in nodes}

    def source(name: str) -> Any:
        return by_name.get(name.partition(":")[0])

    def same(name: str, other: str) -> bool:
        first, second = source(name), source(other)
        reads = first is not None and second is not None and first.op == second.op == "ReadVariableOp"
        return name == other or (reads and first.input[0] == second.input[0])

    def stops(name: str, other: str) -> bool:
        stop = source(name)
        mean = source(stop.input[0]) if stop is not None and stop.op == "StopGradient" else None
        return mean is not None and mean.op == "Mean" and same(mean.input[0], other)

    pairs = (node.input[:2] for node in by_name.values() if node.op == "SquaredDifference")
    return any(stops(y, x) or stops(x, y) for x, y in pairs)


def _create(op_type_name: str, name: str | None = None, **keywords: Any) -> Any:
    if differentiable_moments.here and op_type_name == "SquaredDifference":
        x, y = (
            tf.convert_to_tensor(keywords[key]) if isinstance(keywords[key], tf.Variable) else keywords[key]
            for key in ("x", "y")
        )
        keywords |= {"x": _mean_behind(x, y), "y": _mean_behind(y, x)}
    return differentiable_moments.originals[0](op_type_name, name=name, **keywords)


def _mean_behind(stopped: Any, other: Any) -> Any:
    stop = getattr(stopped, "op", None)
    if stop is not None and stop.type == "StopGradient":
        mean = stop.inputs[0]
        if mean.op.type == "Mean" and _same(mean.op.inputs[0], other):
            return mean
    return stopped


def _same(x: Any, y: Any) -> bool:
    """Whether two tensors have one value: ``y`` may be in a graph around that of ``x``, or another read."""
    second = getattr(y, "op", None)
    if second is None:
        return False
    if y.graph is not x.graph and hasattr(x.graph, "capture"):
        y = x.graph.capture(y)
    reads = x.op.type == second.type == "ReadVariableOp"
    return x is y or (reads and x.op.inputs[0] is second.inputs[0])


def _run_here(function: Any, *args: Any, **kwargs: Any) -> Any:
    if not differentiable_moments.here:
        return differentiable_moments.originals[1](function, *args, **kwargs)
    python: Callable[..., Any] = function.python_function
    if function._autograph:
        python = py_func_from_autograph(python, function._experimental_autograph_options)
    if function._jit_compile:
        # Some kernels are there only when compiled: Keras compiles convolutions in groups for that.
        compiled = tf.function(python, autograph=False, jit_compile=True)
        return differentiable_moments.originals[1](compiled, *args, **kwargs)
    return python(*args, **kwargs)


differentiable_moments = Substitution(
    (op_def_library, "_apply_op_helper", _create), (type(tf.function(lambda: None)), "__call__", _run_here)
)
"""In this context nothing that is traced has a variance about a stopped mean."""
