"""What a result depends on, in a form short enough to be kept beside it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from types import CodeType
from typing import Any

import array_api_compat
import numpy as np

from ihvp.algebra import to_numpy
from ihvp.backend import Batch, GradientFunction, Vector
from ihvp.data import Batches, describe_structure


def of_vector(vector: Vector) -> str:
    """Of the parameters as one vector: their dtype and every bit."""
    return _hex(_feed_array, vector)


def of_batch(batch: Batch) -> str:
    """Of one batch: its structure and every bit of its arrays."""
    return _hex(_feed_batch, batch)


def of_data(batches: Batches) -> str:
    """Of all batches in their order, in one pass over them; how the examples are cut does not enter."""
    state = hashlib.blake2b(digest_size=16)
    pieces: dict[str, Any] = {}
    for batch, _ in batches:
        for name, leaf in _leaves(batch, describe_structure(batch)):
            _feed_leaf(pieces.setdefault(name, hashlib.blake2b(digest_size=16)), leaf)
    for name in sorted(pieces):
        state.update(name.encode() + pieces[name].digest())
    return state.hexdigest()


def of_function(function: Any) -> str:
    """Of a loss: its name and its code; not of what it refers to.

    >>> of_function(lambda w, batch: w) == of_function(lambda w, batch: w + 1)
    False
    """
    if isinstance(function, GradientFunction):
        return of_function(function.grad)
    if isinstance(function, functools.partial):
        return of_function(function.func)
    state = hashlib.blake2b(digest_size=16)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    state.update(f"{getattr(function, '__module__', '')}.{name}".encode())
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    if code is not None:
        _feed_code(state, code)
    for part in getattr(function, "parts", ()):
        state.update(of_function(part).encode())
    return state.hexdigest()


def _hex(feed: Any, value: Any) -> str:
    state = hashlib.blake2b(digest_size=16)
    feed(state, value)
    return state.hexdigest()


def _feed_batch(state: Any, batch: Batch) -> None:
    for name, leaf in _leaves(batch, describe_structure(batch)):
        state.update(name.encode())
        _feed_leaf(state, leaf)


def _leaves(batch: Batch, path: str) -> list[tuple[str, Any]]:
    if isinstance(batch, Mapping):
        return [pair for key in sorted(batch, key=str) for pair in _leaves(batch[key], f"{path}[{key!r}]")]
    if isinstance(batch, (tuple, list)):
        return [pair for i, item in enumerate(batch) for pair in _leaves(item, f"{path}[{i}]")]
    return [(path, batch)]


def _feed_leaf(state: Any, leaf: Any) -> None:
    if hasattr(leaf, "shape"):
        _feed_array(state, leaf)
    else:
        state.update(repr(leaf).encode())


def _feed_array(state: Any, array: Any) -> None:
    # TensorFlow's tensors are no Array API objects, and numpy reads them.
    plain = to_numpy(array) if array_api_compat.is_array_api_obj(array) else np.asarray(array)
    state.update(f"{plain.dtype.str}{plain.shape[1:]}".encode())
    state.update(np.ascontiguousarray(plain).data)


def _feed_code(state: Any, code: CodeType) -> None:
    state.update(code.co_code + repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _feed_code(state, constant)
        else:
            state.update(repr(constant).encode())
