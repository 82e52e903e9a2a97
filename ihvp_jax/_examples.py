"""What a loss does at single examples and at changed data."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ihvp.backend import Batch, Params, Vector
from ihvp_jax._derivatives import compiled, grad, real_scalar
from ihvp_jax._each import each_example
from ihvp_jax._modes import first_usable, pull, reverse
from ihvp_jax._parameters import require_floating, unravel
from ihvp_jax._static import Static, release_constants

# So many vectors share a pass. One by one took up to twice as long for 100 of them, and so did all together.
# Memory is taken by the activations of so many examples and vectors.
_VECTORS, _PAIRS = 16, 1 << 15


@compiled
def value(loss: Static, params: Params, batch: Batch) -> Any:
    """``loss(params, batch)``."""
    return loss.value(params, release_constants(batch))


@compiled
def example_products(loss: Static, params: Params, batch: Batch, v: Vector) -> Vector:
    """``∇C_i · v`` for every example, ``(B,)`` for ``v`` of shape ``(P,)``, ``(B, k)`` for ``(P, k)``.

    An array without dimensions belongs to every example; a batch of nothing else is one example.
    """
    require_floating(params)

    def losses(params: Params) -> jax.Array:
        return _losses(loss, params, batch)

    # The loss's own errors come from here, and whatever fails later is the derivative.
    outputs = losses(params)
    push = first_usable(
        params,
        lambda: jax.linearize(losses, params)[1],
        lambda: partial(reverse, partial(pull, jax.vjp(losses, params)[1]), outputs),
    )

    def on_vector(v: Vector) -> Vector:
        products: Vector = push(unravel(v, params)).astype(v.dtype)
        return products

    if v.ndim == 1:
        return on_vector(v)
    at_once = max(1, min(_VECTORS, _PAIRS // len(outputs)))
    return jax.lax.map(on_vector, v.T, batch_size=at_once).T


@compiled
def input_derivatives(loss: Static, params: Params, batch: Batch, v: Vector) -> list[jax.Array]:
    """The derivatives of ``∇ loss · v`` by the batch's inputs in order, a leading axis k for ``(P, k)``."""
    require_floating(params)
    leaves, structure, places = _inputs(batch)

    def gradient(arrays: list[jax.Array]) -> Vector:
        filled = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            filled[place] = array
        return grad(loss, params, structure.unflatten(filled))

    arrays = [leaves[place] for place in places]
    # As above, the loss's own errors first.
    argument = gradient(arrays)
    derivative = first_usable(argument, lambda: partial(pull, jax.vjp(gradient, arrays)[1]))
    derivatives: list[jax.Array] = derivative(v) if v.ndim == 1 else jax.lax.map(derivative, v.T)
    return derivatives


def in_place_of_inputs(arrays: list[jax.Array], batch: Batch) -> Batch:
    """The structure of ``batch`` with ``arrays`` in the place of its inputs, and None of every other leaf."""
    leaves, structure, places = _inputs(batch)
    following = dict(zip(places, arrays, strict=True))
    return structure.unflatten([following.get(i) for i in range(len(leaves))])


def _inputs(batch: Batch) -> tuple[list[Any], Any, list[int]]:
    """The leaves of a batch, its structure, and which leaves are floating arrays with an axis of examples."""
    leaves, structure = jax.tree.flatten(batch, is_leaf=lambda node: isinstance(node, Static))
    places = [i for i, leaf in enumerate(leaves) if not isinstance(leaf, Static) and _is_input(leaf)]
    return leaves, structure, places


def _is_input(leaf: Any) -> bool:
    return leaf.ndim > 0 and bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _losses(loss: Static, params: Params, batch: Batch) -> jax.Array:
    """The loss at every example, ``(B,)``; an example keeps a leading dimension of 1."""

    def one(example: Batch) -> jax.Array:
        return real_scalar(loss.value(params, release_constants(example)))

    losses: jax.Array = each_example(one, batch)
    return losses
