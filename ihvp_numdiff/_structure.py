"""Nested dicts, lists and tuples of arrays: their leaves in order, and back.

Dicts keep their insertion order. Whatever is not a dict, list or tuple is a leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ihvp.errors import GradientMismatch, describe


def leaves(tree: Any, path: str = "params") -> Iterator[tuple[str, Any]]:
    """Every leaf of ``tree`` with its path, such as ``params['w'][0]``."""
    if isinstance(tree, Mapping):
        for key, child in tree.items():
            yield from leaves(child, f"{path}[{key!r}]")
    elif isinstance(tree, list | tuple):
        for index, child in enumerate(tree):
            yield from leaves(child, f"{path}[{index}]")
    else:
        yield path, tree


def rebuild(like: Any, make: Callable[[Any], Any]) -> Any:
    """A tree in the structure of ``like``, each leaf replaced by ``make(leaf)``, called in order."""
    if isinstance(like, Mapping):
        return {key: rebuild(child, make) for key, child in like.items()}
    if isinstance(like, tuple) and hasattr(like, "_fields"):
        return type(like)(*(rebuild(child, make) for child in like))
    if isinstance(like, list | tuple):
        children = [rebuild(child, make) for child in like]
        return children if isinstance(like, list) else tuple(children)
    return make(like)


def align(gradient: Any, params: Any, path: str = "gradient") -> Iterator[tuple[str, Any, Any]]:
    """Pairs the leaves of a gradient with those of the parameters: ``(path, gradient leaf, parameter)``.

    Keys decide in a dict, whatever their order; lists and tuples stand for one another.
    """
    if isinstance(params, Mapping):
        if not isinstance(gradient, Mapping) or gradient.keys() != params.keys():
            found = f"keys {list(gradient)}" if isinstance(gradient, Mapping) else describe(gradient)
            raise GradientMismatch(f"{found} at {path}", f"a dict with the keys {list(params)}")
        for key, child in params.items():
            yield from align(gradient[key], child, f"{path}[{key!r}]")
    elif isinstance(params, list | tuple):
        if not isinstance(gradient, list | tuple) or len(gradient) != len(params):
            length = f" of length {len(gradient)}" if isinstance(gradient, list | tuple) else ""
            raise GradientMismatch(
                f"{describe(gradient)}{length} at {path}", f"a list or tuple of length {len(params)}"
            )
        for index, child in enumerate(params):
            yield from align(gradient[index], child, f"{path}[{index}]")
    else:
        yield path, gradient, params
