"""What a result depends on, in a form short enough to be kept beside it."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Mapping
from types import CodeType, FunctionType
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Batch, GradientFunction
from ihvp.data import Batches, describe_structure
from ihvp.objective import Objective
from ihvp.operators import LinearOperator

# Containers deeper within others and within functions do not enter: they may refer to anything.
_DEPTH = 16


def of_array(array: Any) -> str:
    """Of an array of any framework: its dtype, shape and every bit."""
    state = _state()
    _feed_array(state, array)
    return _text(state)


def of_batch(batch: Batch) -> str:
    """Of one batch: its structure and every bit of its arrays."""
    return of_data(Batches([batch]))


def of_data(batches: Batches) -> str:
    """Of all batches in their order, in one pass over them; how the examples are cut does not enter."""
    leaves: dict[str, _Rows] = {}
    for batch, _ in batches:
        for name, leaf in _leaves(batch, describe_structure(batch)):
            leaves.setdefault(name, _Rows()).feed(leaf)
    state = _state()
    for name in sorted(leaves):
        state.update(name.encode() + leaves[name].state.digest())
    return _text(state)


def of_function(function: Any) -> str:
    """Of a loss: its code, and the numbers, arrays, containers and functions of its module that it refers to.

    Objects of other kinds enter by their type only: they may change while it runs.

    >>> of_function(lambda w, batch: w) == of_function(lambda w, batch: w + 1)
    False
    >>> margins = [lambda w, batch, label=label: w[label] for label in (0, 1)]
    >>> of_function(margins[0]) == of_function(margins[1])
    False
    >>> weighted = [lambda w, batch, weights={"decay": decay}: weights["decay"] * w for decay in (0.1, 0.2)]
    >>> of_function(weighted[0]) == of_function(weighted[1])
    False
    """
    state = _state()
    _feed_value(state, function, [])
    return _text(state)


def of_objective(objective: Objective) -> dict[str, str]:
    """Of an objective: of its parameters, its loss, and its data, by these names."""
    return {
        "parameters": of_array(objective.backend.flatten(objective.params)),
        "loss": of_function(objective.loss),
        "reduction": objective.reduction,
        "training data": of_data(objective.batches),
        "backend": type(objective.backend).__name__,
    }


def of_operator(operator: LinearOperator, objective: Objective) -> str:
    """Of a curvature: its kind and what it is made of, unless that is the objective itself."""
    state = _state()
    for name, value in sorted(vars(operator).items()):
        if isinstance(value, LinearOperator):
            state.update(of_operator(value, objective).encode())
        elif isinstance(value, Objective):
            if value is not objective:
                state.update(repr(of_objective(value)).encode())
        elif not name.startswith("_"):
            _feed_value(state, value, [])
    return f"{type(operator).__name__} {_text(state)}"


def _state() -> Any:
    return hashlib.blake2b(digest_size=16)


def _text(state: Any) -> str:
    text: str = state.hexdigest()
    return text


def _leaves(batch: Batch, path: str) -> list[tuple[str, Any]]:
    if isinstance(batch, Mapping):
        return [pair for key in sorted(batch, key=str) for pair in _leaves(batch[key], f"{path}[{key!r}]")]
    if isinstance(batch, (tuple, list)):
        return [pair for i, item in enumerate(batch) for pair in _leaves(item, f"{path}[{i}]")]
    return [(path, batch)]


class _Rows:
    """The rows of one array, which comes in pieces."""

    def __init__(self) -> None:
        self.state = _state()
        self._form: Any = None

    def feed(self, leaf: Any) -> None:
        if not hasattr(leaf, "shape"):
            _feed_value(self.state, leaf, [])
            return
        array = _plain(leaf)
        form = leaf.dtype, array.shape[1:]
        # Padded batches differ in their later dimensions.
        if form != self._form:
            self._form = form
            self.state.update(f"{form[0]}{form[1]}".encode())
        self.state.update(_bytes(array))


def _feed_array(state: Any, array: Any) -> None:
    plain = _plain(array)
    state.update(f"{array.dtype}{plain.shape}".encode())
    state.update(_bytes(plain))


def _plain(array: Any) -> NDArray[Any]:
    if not array_api_compat.is_array_api_obj(array):
        # TensorFlow's tensors are no Array API objects, and numpy reads them.
        return np.asarray(array)
    xp = array_api_compat.array_namespace(array)
    # numpy does not know bfloat16, and float32 holds all of its numbers.
    values = algebra.wide(array) if xp.isdtype(array.dtype, "real floating") else array
    return algebra.to_numpy(values.detach() if hasattr(values, "detach") else values)


def _bytes(array: NDArray[Any]) -> Any:
    if array.dtype.hasobject:
        return repr(array.tolist()).encode()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _feed_value(state: Any, value: Any, within: list[Any]) -> None:
    """Whatever a function may refer to; ``within`` are the functions and containers around it.

    Both may refer to themselves.
    """
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        state.update(repr(value).encode())
    elif isinstance(value, (tuple, frozenset)):
        _feed_items(state, value, within)
    elif isinstance(value, (list, dict, set)) and len(within) < _DEPTH and not _is_among(value, within):
        _feed_items(state, value, [*within, value])
    elif isinstance(value, CodeType):
        state.update(value.co_code + repr(value.co_names).encode())
        _feed_value(state, value.co_consts, within)
    elif hasattr(value, "shape") and hasattr(value, "dtype") and not callable(value):
        _feed_array(state, value)
    elif callable(value) and not _is_among(value, within):
        _feed_function(state, value, [*within, value])
    else:
        state.update(type(value).__qualname__.encode())


def _feed_items(state: Any, container: Any, within: list[Any]) -> None:
    state.update(f"{type(container).__name__}{len(container)}".encode())
    items = container.items() if isinstance(container, dict) else container
    for item in sorted(items, key=repr) if isinstance(container, (set, frozenset)) else items:
        _feed_value(state, item, within)


def _is_among(value: Any, others: list[Any]) -> bool:
    return any(value is other for other in others)


def _feed_function(state: Any, function: Any, within: list[Any]) -> None:
    if isinstance(function, GradientFunction):
        _feed_value(state, function.grad, within)
        return
    if isinstance(function, functools.partial):
        for part in (function.func, function.args, *sorted(function.keywords.items())):
            _feed_value(state, part, within)
        return
    function = inspect.unwrap(function)
    plain = getattr(function, "__func__", function)
    if isinstance(plain, FunctionType):
        _feed_value(state, (plain.__code__, plain.__defaults__), within)
        captured = inspect.getclosurevars(plain)
        named = {**captured.globals, **captured.nonlocals, **(plain.__kwdefaults__ or {})}
        # Functions of other modules are not the caller's to change.
        named = {
            name: value
            for name, value in named.items()
            if not callable(value) or getattr(value, "__module__", None) == plain.__module__
        }
    elif isinstance(function, type) or not hasattr(function, "__dict__"):
        named = {"": getattr(function, "__qualname__", type(function).__qualname__)}
    else:
        methods = vars(type(function)).items()
        named = {name: value for name, value in methods if isinstance(value, FunctionType)}
        named |= {name: value for name, value in vars(function).items() if name[0] != "_"}
    _feed_value(state, tuple(sorted(named.items())), within)
