"""Many batches of one size in one loop of the graph."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from ihvp.backend import Batch, Params
from ihvp_tf._derivatives import Functions, Tensor, hessian_product


@functools.cache
def hessian_sum(size: int) -> Callable[..., Tensor]:
    """The derivative ``Σ ∇² loss · v`` over the whole pieces of ``size`` rows of a batch.

    A tensor without dimensions belongs to every piece.
    """

    def hessian_sum_product(
        functions: Functions, params: Params, variables: Sequence[Any], batch: Batch, v: Tensor
    ) -> Tensor:
        stacked = [leaf for leaf in tf.nest.flatten(batch) if _has_rows(leaf)]
        count = tf.shape(stacked[0])[0] // size

        def step(i: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
            piece = tf.nest.map_structure(lambda leaf: _rows(leaf, i * size, size), batch)
            product = hessian_product(functions, params, variables, piece, v)
            return i + 1, total + tf.ensure_shape(product, v.shape)

        start = (tf.constant(0), tf.zeros_like(v))
        return tf.while_loop(lambda i, total: i < count, step, start, parallel_iterations=1)[1]

    return hessian_sum_product


def _rows(leaf: Any, start: Tensor, size: int) -> Any:
    if not _has_rows(leaf):
        return leaf
    rows = leaf[start : start + size]
    # A loss may read the number of rows while it is traced.
    rows.set_shape([size, *leaf.shape[1:]])
    return rows


def _has_rows(leaf: Any) -> bool:
    return bool(tf.is_tensor(leaf)) and leaf.shape.rank != 0
