"""The compiled derivatives.

Each is a function of this module and takes the loss as a ``Static``, so JAX's own cache serves every
backend instance, and a product traces nothing that was traced before for the same loss and shapes.
``_gradient`` is the one place that calls the loss: the second derivatives differentiate its trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from ihvp.backend import Batch, Params, Vector
from ihvp.errors import LossIndependentOfParameters, LossNotScalar, WrongShape
from ihvp_jax._each import each, each_example
from ihvp_jax._modes import first_usable, forward, pull, reverse
from ihvp_jax._parameters import found, is_floating, ravel, require_floating, size, unravel
from ihvp_jax._static import Static, release_constants
from ihvp_jax._zeros import depends, linearized, without_zeros

Function = TypeVar("Function", bound=Callable[..., Any])

# The bytes that the host's caches hold.
_CACHED = 1 << 24


def compiled(function: Function) -> Function:
    """``jax.jit`` with the function's own signature; a call from another compiled function is inlined."""
    return jax.jit(function, inline=True)  # type: ignore[no-any-return]


flatten = compiled(ravel)
unflatten = compiled(unravel)


@compiled
def grad(loss: Static, params: Params, batch: Batch) -> Vector:
    """``∇ loss``, ``(P,)``."""
    require_floating(params)
    return ravel(_gradient(loss, params, batch))


@compiled
def hvp(loss: Static, params: Params, batch: Batch, v: Vector) -> Vector:
    """``∇² loss · v`` for ``v`` of shape ``(P,)`` or ``(P, k)``."""
    if v.ndim > 1:
        # The columns share the passes that belong to the gradient alone.
        return apply(linearize(loss, params, batch), params, v)
    require_floating(params)
    gradient = _gradient_at(loss, params, batch)
    # One forward pass beside the gradient's keeps less in memory than a linearisation.
    curvature = first_usable(
        params,
        lambda: partial(forward, gradient, params),
        lambda: partial(reverse, gradient, params),  # the Hessian is its own transpose
    )
    return _on_columns(curvature, params, v)


@compiled
def linearize(loss: Static, params: Params, batch: Batch) -> Any:
    """``t ↦ ∇² loss · t`` on pytrees, as a pytree of the values that ``apply`` computes with."""
    require_floating(params)
    gradient = _gradient_at(loss, params, batch)
    return without_zeros(
        lambda: first_usable(
            params,
            lambda: linearized(gradient, params),
            lambda: jax.tree_util.Partial(pull, jax.vjp(gradient, params)[1]),
        )
    )


@compiled
def apply(linear: Any, params: Params, v: Vector) -> Vector:
    """The map made by ``linearize``, on ``v`` of shape ``(P,)`` or ``(P, k)``."""
    return _on_columns(linear, params, v)


@compiled
def followed(
    product: Static, known: tuple[Any, ...], v: Vector, then: Static, arguments: tuple[Any, ...]
) -> Any:
    """A function of ``product(*known, v)``, ``v``, further arrays and a constant."""
    function, fixed = then.value
    return function(product.value(*known, v), v, *arguments, fixed)


@compiled
def per_example_grads(loss: Static, params: Params, batch: Batch) -> Vector:
    """``(B, P)``: row i is the gradient of the batch ``leaf[i:i+1]``.

    An array without dimensions belongs to every example; a batch of nothing else is one example.
    """
    require_floating(params)
    return ravel(each_example(partial(_gradient, loss, params), batch), leading=1)


@compiled
def gnvp(predict: Static, loss: Static, params: Params, batch: Batch, v: Vector) -> Vector:
    """``Jᵀ (∇²_outputs loss) J v`` for ``v`` of shape ``(P,)`` or ``(P, k)``."""
    outputs, push, pullback = _jacobian(predict, params, batch)
    curvature = linearize(loss, outputs, batch)
    return _on_columns(jax.tree_util.Partial(_in_turn, push, curvature, pullback), params, v)


@compiled
def curvature_gradient(loss: Static, params: Params, batch: Batch, x: Vector, y: Vector) -> Vector:
    """``∇ (yᵀ ∇² loss x)``, ``(P,)``."""
    require_floating(params)
    gradient = _gradient_at(loss, params, batch)

    def curvature(params: Params) -> jax.Array:
        return jnp.sum(y * ravel(jax.jvp(gradient, (params,), (unravel(x, params),))[1]))

    return ravel(jax.grad(curvature)(params))


@compiled
def push_forward(predict: Static, params: Params, batch: Batch, v: Vector) -> list[Vector]:
    """``J v`` of each of the outputs for ``v`` of shape ``(P,)`` or ``(P, k)``."""
    _, push, _ = _jacobian(predict, params, batch)
    return [part.astype(v.dtype) for part in jax.tree.leaves(_of_columns(push, params, v))]


def _jacobian(predict: Static, params: Params, batch: Batch) -> tuple[Any, Any, Any]:
    """A model's outputs, and ``v ↦ J v`` and ``u ↦ Jᵀ u`` on pytrees."""
    require_floating(params)
    outputs = _outputs(predict, params, batch)
    require_floating(outputs, "output of predict")

    def model(params: Params) -> Any:
        return _outputs(predict, params, batch)

    pullback = jax.tree_util.Partial(pull, jax.vjp(model, params)[1])
    push = first_usable(
        params,
        lambda: linearized(model, params),
        # The pullback is linear in its cotangent: its own pullback is J, at whatever point it is taken.
        lambda: jax.tree_util.Partial(reverse, pullback, outputs),
    )
    return outputs, push, pullback


@compiled
def _gradient(loss: Static, params: Params, batch: Batch) -> Params:
    """``∇ loss`` as a pytree. Compiled on its own so that all derivatives share one trace of the loss."""

    def scalar(params: Params) -> jax.Array:
        return real_scalar(loss.value(params, release_constants(batch)))

    value, pullback = jax.vjp(scalar, params)
    one = jnp.ones_like(value)
    # Every path from the loss to the parameters carries the cotangent; none does if they are unconnected.
    if not any(depends(pullback, one)):
        raise LossIndependentOfParameters("no differentiable path leads from them to its value")
    return pull(pullback, one)


@compiled
def _outputs(predict: Static, params: Params, batch: Batch) -> Any:
    return predict.value(params, release_constants(batch))


def _gradient_at(loss: Static, params: Params, batch: Batch) -> Callable[[Params], Params]:
    """The gradient as a function of the parameters.

    It is called once, so that the loss's own errors come from here and whatever fails later is the
    second derivative.
    """

    def gradient(params: Params) -> Params:
        return _gradient(loss, params, batch)

    gradient(params)
    return gradient


def _in_turn(*arguments: Any) -> Any:
    """Each function of the result of the one before it, the first of the last argument."""
    *functions, result = arguments
    for function in functions:
        result = function(result)
    return result


def _on_columns(linear: Callable[[Params], Params], params: Params, v: Vector) -> Vector:
    """``linear`` on a vector, or on each column of a block, as vectors.

    ``linear`` is a pytree of the arrays that it computes with, where ``v`` is a block.
    """
    return ravel(_of_columns(linear, params, v), trailing=v.ndim - 1)


def _of_columns(linear: Callable[[Params], Params], params: Params, v: Vector) -> Params:
    """The same as pytrees, the columns along the last axis."""
    if v.ndim == 1:
        return linear(unravel(v, params))
    if v.ndim != 2 or v.shape[0] != size(params) or v.shape[1] == 0:
        raise WrongShape(v.shape, size(params))

    def on_row(row: Vector) -> Params:
        return linear(unravel(row, params))

    together, at_once = partial(each, on_row), _columns_at_once(linear, v.shape[1])
    on_host = together if at_once == v.shape[1] > 1 else partial(each, on_row, at_once=at_once)
    products = jax.lax.platform_dependent(v.T, cpu=on_host, default=together)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), products)


def _columns_at_once(linear: Callable[[Params], Params], columns: int) -> int:
    """How many columns the host multiplies together: so many that what they make stays in its caches.

    What a column makes is about as large as what the gradient's passes left. One by one, large columns were
    up to 2.5 times faster than all together, and small ones together up to 1.7 times faster than one by one.
    """
    left: int = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(linear))
    groups = math.ceil(columns / max(1, _CACHED // max(left, 1)))
    return math.ceil(columns / groups)


def real_scalar(value: Any) -> jax.Array:
    """``value``, if it is one real number."""
    if not is_floating(value) or jnp.shape(value) != ():
        raise LossNotScalar(found(value))
    return jnp.asarray(value)
