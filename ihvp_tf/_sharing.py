"""Graphs that backends share: found again by another one while their loss and their variables live.

A graph has read, once, whatever Python values its loss sees. Another backend may use it only where those
are known to be the same, which they are for a plain function over numbers, tensors, variables and functions
of that kind. Objects that can change inside (models, lists, arrays, settings) rule it out.
"""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import tensorflow as tf

from ihvp.backend import Params
from ihvp_tf._graph import Graph
from ihvp_tf._parameters import is_variable

_MOST_SHARED = 64
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
# What these packages define does not change while a program runs.
_CONSTANT_PACKAGES = frozenset({"builtins", "keras", "math", "numpy", "tensorflow"})


class _Shared(NamedTuple):
    graph: Graph
    guards: list[Any]  # weak references, whose callbacks drop the entry


class _MayChange(Exception):
    """Something that a loss sees is not known to stay as it is."""


_entries: OrderedDict[Hashable, _Shared] = OrderedDict()
_lock = threading.Lock()


def shared_graph(
    derivative: Callable[..., Any],
    functions: Sequence[Callable[..., Any]],
    params: Params,
    variables: Sequence[Any],
    ndim: int,
) -> Graph:
    """The graph of ``derivative`` that other backends use, or one of its own where they must not."""
    anchors = list(variables)
    try:
        seen = tuple(_identity(function, anchors) for function in functions)
        key = (derivative, seen, _structure(params), tuple(map(id, variables)), ndim)
    except _MayChange:
        return Graph(derivative)
    with _lock:
        entry = _entries.pop(key, None)
        if entry is None:
            guards = [weakref.ref(anchor, lambda _: _entries.pop(key, None)) for anchor in anchors]
            entry = _Shared(Graph(derivative), guards)
            if len(_entries) >= _MOST_SHARED:
                _entries.popitem(last=False)
        _entries[key] = entry
    return entry.graph


def _structure(params: Params) -> Hashable:
    """The nesting of variables; a model is an object that can change inside."""
    if type(params) is dict:
        return dict, tuple((key, _structure(child)) for key, child in params.items())
    if type(params) in (list, tuple):
        return type(params), tuple(map(_structure, params))
    if not is_variable(params):
        raise _MayChange
    return (type(params),)


def _identity(value: Any, anchors: list[Any]) -> Hashable:
    """What ``value`` is, all that it refers to included, as long as the anchors live."""
    if type(value) in _PLAIN:
        return type(value), value
    if type(value) is tuple:
        return tuple(_identity(item, anchors) for item in value)
    if _is_constant(value):
        return id(value)
    if not isinstance(value, (FunctionType, tf.Variable, tf.Tensor)):
        raise _MayChange
    if any(value is anchor for anchor in anchors):
        return id(value)
    anchors.append(value)
    if not isinstance(value, FunctionType):
        return id(value)
    if vars(value):
        raise _MayChange
    return id(value), value.__code__, tuple(_identity(part, anchors) for part in _visible(value))


def _is_constant(value: Any) -> bool:
    if isinstance(value, ModuleType):
        return _package(value.__name__) in _CONSTANT_PACKAGES
    if isinstance(value, (FunctionType, BuiltinFunctionType, type)):
        return _package(value.__module__) in _CONSTANT_PACKAGES
    return isinstance(value, tf.DType)


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _visible(function: FunctionType) -> Iterator[Any]:
    """What a function refers to: its defaults, what it closes over, global names, modules it may import."""
    yield from (function.__defaults__ or ())
    yield from (function.__kwdefaults__ or {}).values()
    try:
        yield from [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:  # not filled yet
        raise _MayChange from None
    for name in sorted(set(_names(function.__code__))):
        if name in function.__globals__:
            yield function.__globals__[name]
        elif name in sys.modules:
            yield sys.modules[name]


def _names(code: CodeType) -> Iterator[str]:
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return itertools.chain(code.co_names, *inner)
