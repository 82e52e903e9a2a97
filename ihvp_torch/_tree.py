"""Nested containers of leaves: parameters, batches and outputs are all such trees."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """``tree`` with every leaf replaced by ``function(leaf)``; the containers are new, of the same kind.

    Containers are mappings of any class, lists, tuples and named tuples. Everything else is a leaf.
    """
    if isinstance(tree, Tensor):  # by far the quickest to tell
        return function(tree)
    if isinstance(tree, Mapping):
        return _mapping_like(tree, {key: map_leaves(function, value) for key, value in tree.items()})
    if not _is_sequence(tree):
        return function(tree)
    items = [map_leaves(function, item) for item in tree]
    if hasattr(tree, "_fields"):
        return type(tree)(*items)
    return items if isinstance(tree, list) else tuple(items)


def fill(tree: Any, values: Iterable[Any]) -> Any:
    """``tree`` with its leaves replaced, in order, by ``values``."""
    following = iter(values)
    return map_leaves(lambda _: next(following), tree)


def named_leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves in order, each with its path, such as ``layers.0.weight``."""
    prefix = f"{name}." if name else ""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from named_leaves(value, f"{prefix}{key}")
    elif _is_sequence(tree):
        for index, item in enumerate(tree):
            yield from named_leaves(item, f"{prefix}{index}")
    else:
        yield name, tree


def leaves_of(tree: Any) -> list[Any]:
    """The leaves in order."""
    found: list[Any] = []
    _gather(tree, found)
    return found


def _gather(tree: Any, found: list[Any]) -> None:
    # Each operation of a recording asks for the leaves of its arguments: what is quick to tell comes first.
    if _is_sequence(tree):
        for item in tree:
            _gather(item, found)
    elif not isinstance(tree, Tensor) and isinstance(tree, Mapping):
        for value in tree.values():
            _gather(value, found)
    else:
        found.append(tree)


def structure(tree: Any) -> Any:
    """The containers of a tree without its leaves, hashable: equal for trees that differ in leaves only."""
    if isinstance(tree, Mapping):
        return type(tree), tuple((key, structure(value)) for key, value in tree.items())
    if _is_sequence(tree):
        return type(tree), tuple(structure(item) for item in tree)
    return None


def _is_sequence(tree: Any) -> bool:
    # A PackedSequence is a named tuple whose fields only make sense together.
    return isinstance(tree, list | tuple) and not isinstance(tree, PackedSequence)


def _mapping_like(mapping: Mapping[Any, Any], items: dict[Any, Any]) -> Mapping[Any, Any]:
    if type(mapping) is dict or not isinstance(mapping, MutableMapping):
        return items
    # A copy keeps what the class adds, such as the attribute access of Hugging Face's BatchEncoding.
    same = copy.copy(mapping)
    same.update(items)
    return same
