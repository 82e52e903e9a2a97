"""A function of every row, all together where JAX knows how, and else one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ihvp.backend import Batch
from ihvp.errors import UnequalBatches


def each(function: Callable[[Any], Any], rows: Any, at_once: int | None = None) -> Any:
    """The function of every row of a pytree, stacked.

    An array without dimensions belongs to every row. ``at_once`` rows are computed together, by default all.
    """
    leaves, structure = jax.tree.flatten(rows)
    places = [place for place, leaf in enumerate(leaves) if leaf.ndim]

    def one(row: list[Any]) -> Any:
        filled = list(leaves)
        for place, leaf in zip(places, row, strict=True):
            filled[place] = leaf
        return function(structure.unflatten(filled))

    mapped = [leaves[place] for place in places]
    if at_once == 1:
        return jax.lax.map(one, mapped)
    try:
        return jax.vmap(one)(mapped) if at_once is None else jax.lax.map(one, mapped, batch_size=at_once)
    except NotImplementedError:  # an operation, such as a callback to Python, has no rule for many rows
        return jax.lax.map(one, mapped)


def count_examples(batch: Batch) -> int:
    """The first dimension that the arrays of a batch share; 1 if none has any."""
    lengths = {leaf.shape[0] for leaf in jax.tree.leaves(batch) if leaf.ndim}
    if len(lengths) > 1:
        raise UnequalBatches(
            f"The arrays of the batch have {' and '.join(map(str, sorted(lengths)))} examples; expected the "
            "same first dimension in all of them. Arrays shared by all examples belong into the loss."
        )
    return next(iter(lengths), 1)


def each_example(function: Callable[..., Any], batch: Batch, *rows: Any) -> Any:
    """The function of every example alone and of its row of each of ``rows``, stacked.

    An example keeps a leading axis of 1. An array without dimensions belongs to every example; a batch of
    nothing else is one example.
    """

    def one(row: Any) -> Any:
        example, *others, _ = row
        alone = jax.tree.map(lambda leaf, whole: leaf[None] if whole.ndim else leaf, example, batch)
        return function(alone, *others)

    # The numbers of the examples are there so that even without an array there is something to go over.
    return each(one, (batch, *rows, jnp.arange(count_examples(batch))))
