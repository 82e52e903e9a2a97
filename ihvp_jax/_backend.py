"""``JaxBackend``: derivatives of a loss over a pytree, by jit-compiled forward-over-reverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ihvp.backend import Batch, Loss, Matvec, OpenModel, OutputLoss, Params, Predict, Vector
from ihvp_jax import _derivatives, _examples, _implicit, _loop
from ihvp_jax._calls import divided_of, product_of, refusing, whole_of
from ihvp_jax._layers import CotangentLoss, Opened
from ihvp_jax._maps import BatchProducts, Linearized
from ihvp_jax._mesh import computed, laid_like, place_of
from ihvp_jax._parameters import blocks, require_floating
from ihvp_jax._restore import restore
from ihvp_jax._static import Static, hold_constants


class JaxBackend:
    """First and second derivatives of a loss over a pytree of floating arrays.

    The loss is traced once for each structure, shape and dtype of parameters and batch, by this and every
    other instance; batch leaves that are no arrays (strings, numbers, flags) are constants of the trace.
    A compiled product stays in JAX's cache, and its loss with it, until ``jax.clear_caches()``.

    Parameters
    ----------
    params : pytree, optional
        Determines the device; without it, or with numpy arrays only, JAX's default device. Over a mesh, in
        whatever way, vectors are whole on each of its devices, and what has an axis of examples is divided
        as XLA divides it. Of arrays over several meshes those of the parameters' mesh stay as they are.

    Raises
    ------
    ihvp.errors.ParameterError
        The parameters are on several devices of no mesh, or not all of them are real floating arrays; or
        a mesh of explicit axes is set.
    ihvp.errors.TracedValue
        JAX traces an argument of a method, or the function that calls it.

    Notes
    -----
    Leaves of several dtypes are promoted to one by ``flatten`` and cast back by ``unflatten``. Without
    ``jax_enable_x64`` JAX turns numpy's float64 into float32.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> def loss(w, batch):
    ...     return (1 - 2 * w[0] * w[1]) ** 2
    >>> w = jnp.array([1.0, 0.5])
    >>> JaxBackend(w).hvp(loss, w, None, jnp.array([1.0, 1.0])).tolist()
    [6.0, 12.0]
    """

    device: str

    def __init__(self, params: Params = None) -> None:
        if params is not None:
            require_floating(params)
        self.device = place_of(params)

    def flatten(self, params: Params) -> Vector:
        """The leaves in the order of ``jax.tree.leaves`` as one vector ``(P,)``."""
        return whole_of(params, _derivatives.flatten, params)

    def unflatten(self, vector: Vector, like: Params) -> Params:
        """The exact inverse of ``flatten``, in the structure, shapes and dtypes of ``like``."""
        return laid_like(refusing(like, computed, _derivatives.unflatten, vector, like), like)

    def grad(self, loss: Loss, params: Params, batch: Batch) -> Vector:
        """The gradient ``∇ loss(params, batch)``, ``(P,)``."""
        return whole_of(params, _derivatives.grad, Static(loss), params, hold_constants(batch))

    def hvp(self, loss: Loss, params: Params, batch: Batch, v: Vector) -> Vector:
        """The product ``∇² loss(params, batch) · v`` for ``v`` of shape ``(P,)`` or ``(P, k)``."""
        return product_of(v, _derivatives.hvp, Static(loss), params, hold_constants(batch))

    def hvp_sum(self, loss: Loss, params: Params, batch: Batch, v: Vector, size: int) -> Vector:
        """The sum of the products of all whole pieces of ``size`` rows of ``batch``, in one compiled loop."""
        held = hold_constants(batch)
        return whole_of(params, _loop.hvp_sum, Static(loss), params, held, v, Static(size))

    def linearize(self, loss: Loss, params: Params, batch: Batch) -> Matvec:
        """The map ``v ↦ ∇² loss(params, batch) · v``, its forward and first backward pass done once.

        Leaves can be replaced in their container, and numpy ones change in place: they are compared before
        each product. The map's ``nbytes`` is the
        memory that it keeps.
        """
        return Linearized(Static(loss), params, hold_constants(batch))

    def batch_products(
        self, loss: Loss | OutputLoss, params: Params, predict: Predict | None = None
    ) -> BatchProducts:
        """:meth:`hvp` at ``params``, or with ``predict`` :meth:`gnvp`, for many batches."""
        if predict is None:
            return BatchProducts(_derivatives.hvp, params, Static(loss))
        return BatchProducts(_derivatives.gnvp, params, Static(predict), Static(loss))

    def per_example_grads(self, loss: Loss, params: Params, batch: Batch) -> Vector:
        """The gradients of the batch's examples, ``(B, P)``; an example keeps a leading dimension of 1."""
        return divided_of(params, _derivatives.per_example_grads, Static(loss), params, hold_constants(batch))

    def value(self, loss: Loss, params: Params, batch: Batch) -> Any:
        """``loss(params, batch)``, compiled."""
        return whole_of(params, _examples.value, Static(loss), params, hold_constants(batch))

    def example_products(self, loss: Loss, params: Params, batch: Batch, v: Vector) -> Vector:
        """``∇C_i · v`` for each of the batch's examples, ``(B,)`` or ``(B, k)``, in forward mode."""
        return divided_of(params, _examples.example_products, Static(loss), params, hold_constants(batch), v)

    def input_derivatives(self, loss: Loss, params: Params, batch: Batch, v: Vector) -> Batch:
        """The derivatives of ``∇ loss(params, batch) · v`` by the batch's floating arrays; None for the rest.

        For ``v`` of shape ``(P, k)`` they have a leading axis k.
        """
        held = hold_constants(batch)
        arrays = divided_of(params, _examples.input_derivatives, Static(loss), params, held, v)
        return _examples.in_place_of_inputs(arrays, held)

    def gnvp(self, predict: Predict, loss: OutputLoss, params: Params, batch: Batch, v: Vector) -> Vector:
        """``Jᵀ (∇²_outputs loss) J v`` with ``J`` the Jacobian of ``predict``; outputs may be any pytree."""
        held = hold_constants(batch)
        return product_of(v, _derivatives.gnvp, Static(predict), Static(loss), params, held)

    def push_forward(self, predict: Predict, params: Params, batch: Batch, v: Vector) -> list[Vector]:
        """``J v`` for each array that ``predict`` returns: ``(*shape)``, or ``(*shape, k)``."""
        arguments = Static(predict), params, hold_constants(batch), v
        pushed: list[Vector] = divided_of(params, _derivatives.push_forward, *arguments)
        return pushed

    def open(self, predict: Predict, params: Params, batch: Batch) -> OpenModel:
        """A forward pass of ``predict(params, batch)`` with the inputs of each layer, to be pulled back.

        Layers are found in the model's trace, whatever library it is written with: products of an input with
        a weight, convolutions, and lookups in a table. The weight is a leaf or a contiguous part of one, its
        axes in any order. ``jit``, ``checkpoint`` and ``scan`` are looked through, and what a ``scan`` takes
        from a leaf in each iteration is a layer each. Not seen is what is within other control flow or custom
        derivatives, and a weight that is used in another way too.

        Raises
        ------
        ihvp.errors.LossError
            The model's outputs do not have the examples along their first axis.
        ihvp.errors.UnequalBatches
            The arrays of the batch differ in their first dimension.
        """
        return refusing(params, Opened, Static(predict), params, hold_constants(batch))

    def cotangent_loss(self, predict: Predict) -> Loss:
        """The loss ``⟨outputs, cotangents⟩`` of a batch ``(batch, cotangents)``; equal for equal models."""
        return CotangentLoss(Static(predict))

    def restore(self, checkpoint: Any, params: Params) -> Params:
        """The parameters that a checkpoint holds, in the structure of ``params``."""
        return restore(checkpoint, params)

    def joint(self, params: Params, hyper: Any) -> Params:
        """Both in one tuple; a number becomes an array of the dtype of the parameters' vectors."""
        dtype = self.flatten(params).dtype
        require_floating(hyper, "hyperparameter")
        return params, jax.tree.map(
            lambda leaf: np.asarray(leaf, dtype) if type(leaf) is float else leaf, hyper
        )

    def differentiable(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """The outputs of ``function(*inputs)`` with the derivatives that it says, in reverse mode."""
        return _implicit.differentiable(function, *inputs)

    def curvature_gradient(self, loss: Loss, params: Params, batch: Batch, x: Vector, y: Vector) -> Vector:
        """The gradient ``∇ (yᵀ ∇² loss x)``, ``(P,)``."""
        arguments = Static(loss), params, hold_constants(batch), x, y
        return whole_of(params, _derivatives.curvature_gradient, *arguments)

    def blocks(self, params: Params) -> dict[str, slice]:
        """The part of the flat vector that each leaf is, by its path, as in ``"dense/kernel"``."""
        return blocks(params)
