"""Many batches of one size in one compiled loop."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ihvp.backend import Batch, Params, Vector
from ihvp_jax._derivatives import compiled, hvp
from ihvp_jax._static import Static


@compiled
def hvp_sum(loss: Static, params: Params, batch: Batch, v: Vector, size: Static) -> Vector:
    """``Σ ∇² loss(params, piece) · v`` over the whole pieces of ``size`` rows of ``batch``.

    An array without dimensions belongs to every piece.
    """
    rows: int = size.value
    count = min(leaf.shape[0] for leaf in jax.tree.leaves(batch) if leaf.ndim) // rows

    def product(i: Any) -> Vector:
        def cut(leaf: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(leaf, i * rows, rows) if leaf.ndim else leaf

        return hvp(loss, params, jax.tree.map(cut, batch), v)

    like = jax.eval_shape(product, 0)
    return jax.lax.fori_loop(0, count, lambda i, total: total + product(i), jnp.zeros(like.shape, like.dtype))
