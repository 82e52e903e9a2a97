"""Calls of compiled functions with arrays that lie anywhere, and results where the parameters lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from ihvp.backend import Params, Vector
from ihvp.errors import TracedValue, is_traced
from ihvp_jax._mesh import computed, divided, whole
from ihvp_jax._parameters import require_floating

T = TypeVar("T")


def refusing(params: Params, function: Callable[..., T], *arguments: Any) -> T:
    """``function(*arguments)``; a leaf of ``params`` that jit itself refuses is a ``ParameterError`` too."""
    try:
        return function(*arguments)
    except TypeError:
        require_floating(params)
        raise


def product_of(v: Vector, function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments, v)`` of the parameters before last; a traced ``v`` is let in."""
    if not is_traced(v):
        return whole_of(arguments[-2], function, *arguments, v)
    if any(map(is_traced, jax.tree.leaves(arguments))):
        raise TracedValue("A parameter or an array of the batch")
    return function(*arguments, v)


def whole_of(params: Params, function: Callable[..., Any], *arguments: Any) -> Any:
    """The same of a compiled function, its result :func:`whole` where the parameters lie."""
    return whole(refusing(params, computed, function, *arguments), params)


def divided_of(params: Params, function: Callable[..., Any], *arguments: Any) -> Any:
    """The same, its result :func:`divided`."""
    return divided(refusing(params, computed, function, *arguments), params)
