"""Products with many vectors at one batch, or at many batches: what stays is looked at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ihvp.backend import Batch, Params, Vector
from ihvp.errors import TracedValue, is_traced
from ihvp_jax import _derivatives
from ihvp_jax._calls import product_of, refusing, whole_of
from ihvp_jax._mesh import computed, over_mesh
from ihvp_jax._static import Static, hold_constants

_APPLY = Static(_derivatives.apply)


class Linearized:
    """``v ↦ ∇² loss(params, batch) · v``."""

    def __init__(self, loss: Static, params: Params, batch: Batch) -> None:
        self._loss, self._params, self._batch = loss, params, batch
        self._linearize()

    @property
    def nbytes(self) -> int:
        """The memory that this map keeps beside the parameters and the batch."""
        linear, seen = self._known
        copies = [leaf for leaf in seen if isinstance(leaf, np.ndarray)]
        return sum(leaf.nbytes for leaf in [*jax.tree.leaves(linear), *copies])

    def _linearize(self) -> Any:
        leaves = jax.tree.leaves(self._params)
        seen = [leaf.copy() if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
        arguments = self._loss, self._params, self._batch
        linear = refusing(self._params, computed, _derivatives.linearize, *arguments)
        # Both at once: another thread finds what belongs together.
        self._known = linear, seen
        self._over_mesh = over_mesh((linear, self._params))
        return linear

    def _current(self) -> Any:
        linear, seen = self._known
        unchanged = all(map(_is_unchanged, jax.tree.leaves(self._params), seen))
        return linear if unchanged else self._linearize()

    def __call__(self, v: Vector) -> Vector:
        return whole_of(self._params, _derivatives.apply, self._current(), self._params, v)

    def then(self, function: Callable[..., Any], v: Vector, *arguments: Any, fixed: Any) -> Any:
        """``function(product, v, *arguments, fixed)`` of the product with ``v``, compiled with it as one."""
        known, then = (self._current(), self._params), Static((function, fixed))
        if self._over_mesh or is_traced(v) or over_mesh(v):
            return whole_of(self._params, _derivatives.followed, _APPLY, known, v, then, arguments)
        # To look at all that was linearised again would take longer than a small product.
        return _with_values(_derivatives.followed(_APPLY, known, v, then, arguments))


class BatchProducts:
    """``(batch, v) ↦ product(*losses, params, batch, v)`` at parameters that stay as they are."""

    def __init__(self, product: Callable[..., Any], params: Params, *losses: Static) -> None:
        self._product, self._losses, self._params = Static(product), losses, params
        leaves = jax.tree.leaves(params)
        self._plain = not (any(map(is_traced, leaves)) or over_mesh(leaves))

    def __call__(self, batch: Batch, v: Vector) -> Vector:
        arguments = *self._losses, self._params, hold_constants(batch)
        return product_of(v, self._product.value, *arguments)

    def then(self, function: Callable[..., Any], batch: Batch, v: Vector, *arguments: Any, fixed: Any) -> Any:
        """:meth:`Linearized.then` of the product at a batch."""
        held = hold_constants(batch)
        if not self._plain or any(map(is_traced, jax.tree.leaves((held, v)))) or over_mesh((held, v)):
            return function(self(batch, v), v, *arguments, fixed)
        known = *self._losses, self._params, held
        return _with_values(
            _derivatives.followed(self._product, known, v, Static((function, fixed)), arguments)
        )


def _with_values(result: Any) -> Any:
    if any(map(is_traced, jax.tree.leaves(result))):
        # The loss refers to what is traced.
        raise TracedValue("A result")
    return result


def _is_unchanged(leaf: Any, seen: Any) -> bool:
    return leaf is seen or (isinstance(leaf, np.ndarray) and np.array_equal(leaf, seen))
