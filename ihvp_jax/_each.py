"""A function of every row, all together where JAX knows how, and else one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def each(function: Callable[[Any], Any], rows: Any, at_once: int | None = None) -> Any:
    """The function of every row of a pytree, stacked.

    Parameters
    ----------
    function : callable
    rows : pytree
        An array without dimensions belongs to every row.
    at_once : int, optional
        How many rows are computed together, by default all.
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
