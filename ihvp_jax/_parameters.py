"""Parameters as a pytree and as one vector.

Products call these only while JAX traces, so what is checked here costs nothing in later products.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ihvp.backend import Params
from ihvp.errors import ParameterError, WrongShape, describe


def require_floating(tree: Params, role: str = "parameter") -> None:
    """Refuse a tree without leaves, and any leaf that is not a real floating array."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise ParameterError(
            f"Found no {role} in {describe(tree)}; expected a pytree with at least one floating array. "
            "Pass the arrays that the loss is to be differentiated by."
        )
    refused = [
        f"{jax.tree_util.keystr(path) or 'the tree itself'} is {found(leaf)}"
        for path, leaf in leaves
        if not is_floating(leaf)
    ]
    if refused:
        raise ParameterError(
            f"Found a {role} that is not a real floating array: {'; '.join(refused)}. Expected a pytree of "
            f"float16, bfloat16, float32 or float64 arrays. Cast these leaves, or leave them out of the "
            f"{role}s and let the loss close over them."
        )


def is_floating(value: object) -> bool:
    """Whether a value is a real floating array or number."""
    return isinstance(value, (jax.Array, np.ndarray, np.floating, float)) and bool(
        jnp.issubdtype(jnp.result_type(value), jnp.floating)
    )


def found(value: object) -> str:
    """A value as an error text names it, with its dtype where it has one."""
    # The class of a JAX array is an internal, and another one while tracing.
    text = f"jax.Array of shape {value.shape}" if isinstance(value, jax.Array) else describe(value)
    return f"{text} and dtype {value.dtype}" if hasattr(value, "dtype") else text


def vector_dtype(leaves: Sequence[Any]) -> Any:
    """The dtype of vectors: that which all leaves promote to, and no narrower than float32."""
    return jnp.promote_types(jnp.result_type(*leaves), jnp.float32)


def ravel(tree: Params, *, leading: int = 0, trailing: int = 0) -> jax.Array:
    """The leaves in the order of ``jax.tree.leaves``, as one vector ``(P,)`` of :func:`vector_dtype`.

    All leaves share ``leading`` first and ``trailing`` last dimensions, which the result keeps.
    """
    require_floating(tree)
    leaves = jax.tree.leaves(tree)
    dtype = vector_dtype(leaves)

    def part(leaf: jax.Array) -> jax.Array:
        shape = jnp.shape(leaf)
        shape = (*shape[:leading], -1, *shape[len(shape) - trailing :])
        return jnp.reshape(leaf, shape).astype(dtype)

    return jax.lax.platform_dependent(
        [part(leaf) for leaf in leaves],
        cpu=partial(_written, axis=leading),
        default=partial(jnp.concatenate, axis=leading),
    )


def _written(parts: list[jax.Array], axis: int) -> jax.Array:
    """The concatenation of the parts, each written where it belongs.

    For ``concatenate`` XLA's compiler for the host masks reads of every part at every place. Where the masked
    ones meet unmapped memory some processors need microseconds for them, and a product twice its time.
    """
    ends = list(itertools.accumulate(part.shape[axis] for part in parts))
    shape = list(parts[0].shape)
    shape[axis] = ends[-1]
    whole = jnp.zeros(shape, parts[0].dtype)
    for part, end in zip(parts, ends, strict=True):
        whole = jax.lax.dynamic_update_slice_in_dim(whole, part, end - part.shape[axis], axis)
    return whole


def unravel(vector: jax.Array, like: Params) -> Params:
    """The inverse of ``ravel``: the structure, shapes and dtypes of ``like``."""
    require_floating(like)
    if vector.shape != (size(like),):
        raise WrongShape(vector.shape, size(like))
    leaves, structure = jax.tree.flatten(like)
    pieces = jax.lax.split(vector, [jnp.size(leaf) for leaf in leaves])
    return structure.unflatten(
        [
            piece.reshape(jnp.shape(leaf)).astype(jnp.result_type(leaf))
            for piece, leaf in zip(pieces, leaves, strict=True)
        ]
    )


def size(params: Params) -> int:
    """The number P of parameters."""
    return sum(map(jnp.size, jax.tree.leaves(params)))


def blocks(params: Params) -> dict[str, slice]:
    """The part of the vector that each leaf is, by its path, as in ``"dense/kernel"``.

    The attribute ``value``, in which all variables of Flax's nnx hold their array, is left out.
    """
    require_floating(params)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = ["/".join(map(_key, path)) or "params" for path, _ in leaves]
    if all(name.endswith("/value") for name in names):
        names = [name.removesuffix("/value") for name in names]
    if len(set(names)) < len(names):  # a key may hold a slash, or be a number or its text
        names = [jax.tree_util.keystr(path) for path, _ in leaves]
    stops = itertools.accumulate(jnp.size(leaf) for _, leaf in leaves)
    return {
        name: slice(stop - jnp.size(leaf), stop)
        for name, stop, (_, leaf) in zip(names, stops, leaves, strict=True)
    }


def _key(key: Any) -> str:
    """A part of a path: the key of a dict, the place in a sequence, the name of an attribute."""
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))
