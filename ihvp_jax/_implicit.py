"""Values whose derivatives are told to JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def differentiable(function: Callable[..., Any], *inputs: Any) -> Any:
    """The outputs of ``function(*inputs)``, whose derivatives are what pulls cotangents back."""
    kept: list[Callable[[Any], Any]] = []

    @jax.custom_vjp  # type: ignore[untyped-decorator]
    def attached(*inputs: Any) -> Any:
        return function(*inputs)[0]

    def forward(*inputs: Any) -> tuple[Any, Any]:
        outputs, pull_back = function(*inputs)
        # Kept beside JAX, which takes arrays alone from one pass to the other.
        kept.append(pull_back)
        return outputs, inputs

    def backward(inputs: Any, cotangents: Any) -> tuple[Any, ...]:
        return tuple(
            None if found is None else jax.tree.map(_like, value, found)
            for value, found in zip(inputs, kept[-1](cotangents), strict=True)
        )

    attached.defvjp(forward, backward)
    return attached(*inputs)


def _like(value: Any, found: Any) -> jax.Array:
    return jnp.asarray(found, jnp.result_type(value))
