"""Derivatives of a function in forward mode, and in reverse mode where JAX has no forward rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from ihvp.errors import UnsupportedOperation

Linear = TypeVar("Linear", bound=Callable[[Any], Any])


def forward(function: Callable[[Any], Any], point: Any, tangent: Any) -> Any:
    """``J t`` with ``J`` the Jacobian of the function at a point."""
    return jax.jvp(function, (point,), (tangent,))[1]


def reverse(function: Callable[[Any], Any], point: Any, cotangent: Any) -> Any:
    """``Jᵀ c`` with ``J`` the Jacobian of the function at a point."""
    return pull(jax.vjp(function, point)[1], cotangent)


def pull(pullback: Callable[[Any], tuple[Any]], cotangent: Any) -> Any:
    """What ``jax.vjp`` of a function of one argument returns for it, out of its tuple."""
    (result,) = pullback(cotangent)
    return result


def first_usable(argument: Any, *candidates: Callable[[], Linear]) -> Linear:
    """The first of the candidates, made forward mode first, that JAX can trace and compile.

    Decided while tracing: a compiled product holds the mode that worked.
    """
    for make in candidates:
        try:
            linear = make()
            _require_compilable(linear, argument)
        except Exception as error:
            refusal = error
        else:
            return linear
    raise UnsupportedOperation(
        _operation(refusal), "JAX", "forward-over-reverse and reverse-over-reverse"
    ) from refusal


def _require_compilable(linear: Callable[[Any], Any], argument: Any) -> None:
    # Forward mode leaves a `custom_lin` in the place of a custom_vjp, and only the compiler refuses it.
    if "custom_lin" in _primitives(jax.make_jaxpr(linear)(argument).jaxpr):
        raise TypeError("can't apply forward-mode differentiation to 'custom_vjp'")


def _primitives(jaxpr: Any) -> set[str]:
    """The names of all operations in a trace, the nested ones included."""
    names = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for value in jax.tree.leaves(tuple(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                names |= _primitives(inner)
    return names


def _operation(error: Exception) -> str:
    """The operation that JAX's error names: a primitive in quotes, or else the error's first sentence."""
    quoted = re.search(r"'([\w.-]+)'", str(error))
    if quoted:
        return quoted[1]
    sentence = re.split(r"\.\s|\n", f"{error} ", maxsplit=1)[0]
    return f"an operation of the loss ({sentence})"
