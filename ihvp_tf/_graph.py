"""One derivative of one loss as TensorFlow graphs: traced once a shape, checked once, run often."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from ihvp.backend import Batch, Params, Vector
from ihvp.errors import IhvpError, LossError, UnsupportedOperation
from ihvp_tf._cross_entropy import whole_cross_entropy
from ihvp_tf._host import aligned_copy, share, to_tensor
from ihvp_tf._moments import differentiable_moments, has_stopped_mean
from ihvp_tf._state import UnchangedState

_MODES = "reverse over reverse"
# TensorFlow registers these gradients as constants: products through them would be wrong without a word.
_SILENTLY_CONSTANT = frozenset(
    {
        "ResizeBilinearGrad",
        "FakeQuantWithMinMaxArgsGradient",
        "FakeQuantWithMinMaxVarsGradient",
        "FakeQuantWithMinMaxVarsPerChannelGradient",
        "SparseAddGrad",
    }
)
_MOMENTS = "tf.nn.moments, where it cannot be traced again,"
_NAMES_OF_OPERATION = (
    r"\(op type: (\w+)\)",
    r"gradient registry has no entry for: (\w+)",
    r"(?:OpKernel was registered to support Op|Could not find device for node.*? = )\s*'?(\w+)",
    r"(recompute_grad|SymbolicGradient)",
)
_NEEDS_NUMBERS = re.compile(r"[Ss]ymbolic|only available when eager execution")


class Graph:
    """The compiled form of ``derivative(functions, params, variables, batch, v)``.

    The first call is traced with exact shapes. Later ones with another batch size are traced once more with
    that dimension left open, and then never again; a loss that needs exact shapes is traced for each.

    All calls have the same functions and variables. The graph holds neither, so that it does not keep them
    alive.
    """

    def __init__(self, derivative: Callable[..., Any]) -> None:
        self._second_order = derivative.__name__.endswith("_product")
        self._moments: Callable[[], AbstractContextManager[None]] = nullcontext
        self._raised: Exception | None = None
        self._subject: tuple[Any, ...] = ()
        self._lock = threading.RLock()
        autograph = tf.__internal__.autograph

        # AutoGraph is to translate Python's `if` and `for` over tensors in the user's functions, not in ours;
        # and it changes the class of exceptions on their way out, so the original one is kept.
        def expression(context: Any, *arguments: Any) -> Any:
            self._raised = None
            functions, params, variables = self._subject
            try:
                converted = [autograph.tf_convert(function, context) for function in functions]
                return derivative(converted, params, variables, *arguments)
            except Exception as error:
                self._raised = error
                raise

        opaque = tf.autograph.experimental.do_not_convert(expression)

        def traced(*arguments: Any) -> Any:
            return opaque(autograph.control_status_ctx(), *arguments)

        self._python = traced
        self._function = tf.function(traced, reduce_retracing=True)
        self._states: dict[Any, UnchangedState] = {}
        self._found: dict[Hashable, Any] = {}

    def __call__(
        self,
        functions: Sequence[Callable[..., Any]],
        params: Params,
        variables: Sequence[Any],
        batch: Batch,
        v: Vector | None = None,
        values: Sequence[tuple[Any, Any]] = (),
    ) -> Any:
        """The derivative as new numpy arrays, at the variables' current values, or at others.

        ``v`` is ``(P,)`` or ``(P, k)`` here, and a block is ``(k, P)`` for the derivative. ``values`` are
        pairs of a variable and its other value.
        """
        batch = tf.nest.map_structure(to_tensor, batch)
        if v is None:
            # A copy: the result belongs to the caller, who may write to it.
            result = self._run((functions, params, variables), (batch,), values)
            return tf.nest.map_structure(lambda leaf: leaf.numpy() if tf.is_tensor(leaf) else leaf, result)
        memory = aligned_copy(v.T)
        result = self._run((functions, params, variables), (batch, share(memory)), values)
        # Where v was lies memory that is touched already, and nobody else's.
        np.copyto(memory, result)
        return memory.T

    def _run(
        self, subject: tuple[Any, ...], arguments: tuple[Any, ...], values: Sequence[tuple[Any, Any]]
    ) -> Any:
        try:
            key = tuple(map(_form, arguments))
        except TypeError:
            key = None
        concrete = self._found.get(key) if key else None
        if concrete is None:
            concrete = self._trace(subject, arguments)
            if key:
                self._found[key] = concrete
        try:
            return self._states[concrete].run(arguments, values)
        except tf.errors.OpError as error:
            explained = self._explained(error)
            raise explained from (None if explained is error else error)

    def _trace(self, subject: tuple[Any, ...], arguments: tuple[Any, ...]) -> Any:
        signature = arguments
        if len(arguments) == 2:
            batch, v = arguments
            # The number of columns is left open: solvers drop those that have converged.
            shape = v.shape if v.shape.rank == 1 else (None, v.shape[1])
            signature = (batch, tf.TensorSpec(shape, v.dtype))
        with self._lock:
            self._subject = subject
            try:
                return self._traced(signature)
            finally:
                self._subject = ()

    def _traced(self, signature: tuple[Any, ...]) -> Any:
        with whole_cross_entropy(), self._moments():
            concrete = self._concrete(signature)
        if concrete not in self._states:
            try:
                self._states[concrete] = self._checked(concrete)
            except UnsupportedOperation as error:
                if error.operation != _MOMENTS or self._moments is not nullcontext:
                    raise
                return self._with_differentiable_moments(signature)
        return concrete

    def _with_differentiable_moments(self, signature: tuple[Any, ...]) -> Any:
        """The trace that is right for a loss with moments; later ones are like it."""
        self._moments = differentiable_moments
        self._function = tf.function(self._python, reduce_retracing=True)
        try:
            return self._traced(signature)
        except IhvpError:
            raise
        except Exception as error:
            # It could be traced before: some tf.function of the user's cannot run as part of another graph.
            raise UnsupportedOperation(_MOMENTS, "TensorFlow", _MODES) from error

    def _concrete(self, signature: tuple[Any, ...]) -> Any:
        try:
            try:
                return self._function.get_concrete_function(*signature)
            except Exception:
                if not self._states:
                    raise
                exact = tf.function(self._python)
                concrete = exact.get_concrete_function(*signature)
                self._function = exact
                return concrete
        except Exception as error:
            original = _before_autograph(self._raised or error)
            self._raised = None
            explained = self._explained(original)
            raise explained from (None if explained is original else original)

    def _checked(self, concrete: Any) -> UnchangedState:
        graph = concrete.graph.as_graph_def()
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        operations = {node.op for node in nodes}
        if self._second_order:
            constant = sorted(operations & _SILENTLY_CONSTANT)
            if any(node.op == "EagerPyFunc" and "gradient_tape/" in node.name for node in nodes):
                constant.append("tf.py_function")
            if has_stopped_mean(graph):
                constant.append(_MOMENTS)
            if constant:
                raise UnsupportedOperation(constant[0], "TensorFlow", _MODES)
        return UnchangedState(concrete, operations)

    def _explained(self, error: Exception) -> Exception:
        """The same error in this library's words, where it has any."""
        text = str(error)
        if self._second_order and isinstance(error, (LookupError, NotImplementedError, tf.errors.OpError)):
            for pattern in _NAMES_OF_OPERATION:
                if match := re.search(pattern, text):
                    return UnsupportedOperation(match[1], "TensorFlow", _MODES)
        if isinstance(error, (AttributeError, NotImplementedError, TypeError)) and _NEEDS_NUMBERS.search(
            text
        ):
            return LossError(
                "The loss needs the numbers of a tensor while TensorFlow compiles it (.numpy(), float() or a "
                f"numpy function): {text.strip().splitlines()[-1].strip()} Write this part with TensorFlow "
                "functions, or compute it beforehand and pass it in the batch."
            )
        return error


def _before_autograph(error: Exception) -> Exception:
    """The user's own exception, where AutoGraph has put one of its class in the place of it."""
    original = error.__context__
    if isinstance(error, type(original)) or not isinstance(original, Exception):
        return error
    if not hasattr(original, "ag_error_metadata"):
        return error
    original.add_note(str(error))  # with the line of the user's code
    return original


def _form(value: Any) -> Hashable:
    """What decides which trace serves an argument: nesting, shapes and dtypes, and the values of constants.

    A TypeError says that it has other parts than these.
    """
    kind = type(value)
    if isinstance(value, dict):
        return kind, tuple((key, _form(child)) for key, child in value.items())
    if isinstance(value, (list, tuple)):
        return kind, tuple(map(_form, value))
    if isinstance(value, tf.Tensor):
        return value.dtype, tuple(value.shape)
    if kind in (bool, int, str, type(None)):
        return kind, value
    raise TypeError(f"no form for a {kind}")
