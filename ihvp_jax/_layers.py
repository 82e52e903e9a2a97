"""A model opened at its layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ihvp.backend import Batch, OutputLoss, Params, Vector
from ihvp.errors import LossError
from ihvp_jax import _derivatives
from ihvp_jax._derivatives import compiled
from ihvp_jax._each import count_examples, each, each_example
from ihvp_jax._mesh import computed, divided, whole
from ihvp_jax._modes import pull
from ihvp_jax._named import Members, named_layers
from ihvp_jax._parameters import blocks, ravel, require_floating, vector_dtype
from ihvp_jax._program import Path, Uses, run
from ihvp_jax._static import Static, release_constants
from ihvp_jax._view import View


class Opened:
    """A forward pass of a model, to be pulled back to what its layers give."""

    def __init__(self, predict: Static, params: Params, batch: Batch) -> None:
        self._params, self._batch = params, batch
        self._outputs, inputs, self._pull, form = computed(_opened, predict, params, batch)
        self.inputs: Sequence[Vector] = divided(inputs, params)
        self.shapes, self.layers = form.value

    def outputs(self) -> Vector:
        """The F outputs, ``(F,)``."""
        return whole(computed(_derivatives.flatten, self._outputs), self._params)

    def pull_back(self, cotangents: Vector) -> list[Vector]:
        """For ``(V, F)`` the derivatives by what each layer gives, ``(V, B, S, groups, d_out)``."""
        derivatives: list[Vector] = divided(computed(_pulled_back, self._pull, cotangents), self._params)
        return derivatives

    def output_gradient(self, loss: OutputLoss) -> Vector:
        """The gradient of ``loss(outputs, batch)`` by the outputs, ``(F,)``."""
        gradient = computed(_derivatives.grad, Static(loss), self._outputs, self._batch)
        return whole(gradient, self._params)

    def output_hvp(self, loss: OutputLoss, v: Vector) -> Vector:
        """``∇²_outputs loss · v`` for ``v`` of shape ``(F, k)``."""
        product = computed(_derivatives.hvp, Static(loss), self._outputs, self._batch, v)
        return whole(product, self._params)


@dataclass(frozen=True)
class CotangentLoss:
    """``⟨outputs, cotangents⟩`` of a batch ``(batch, cotangents)``; equal for one model, so traced once."""

    predict: Static

    def __call__(self, params: Params, batch: Batch) -> jax.Array:
        inputs, cotangents = batch
        outputs = jax.tree.leaves(self.predict.value(params, inputs))
        # An example alone may have lost its axis in one of the two.
        products = [jnp.sum(a.ravel() * b.ravel()) for a, b in zip(outputs, cotangents, strict=True)]
        return sum(products[1:], start=products[0])


@compiled
def _opened(predict: Static, params: Params, batch: Batch) -> Any:
    """The outputs, what goes into the layers, the map from cotangents, and shapes and layers as a constant.

    The trace is that of the model on one example, and computed for all of them together: so it is known what
    belongs to which example, whatever axes the model makes of it.
    """
    require_floating(params)
    leaves, count = jax.tree.leaves(params), count_examples(batch)
    dtype = vector_dtype(leaves)

    def model(params: Params, batch: Batch) -> Any:
        return predict.value(params, release_constants(batch))

    first = jax.tree.map(lambda leaf: leaf[:1] if leaf.ndim else leaf, batch)
    program, of_one = jax.make_jaxpr(model, return_shape=True)(params, first)
    of_all = jax.eval_shape(model, params, batch)
    shapes = _shapes(jax.tree.leaves(of_one), jax.tree.leaves(of_all), count)
    uses = Uses(program.jaxpr, _views(leaves, len(program.jaxpr.invars)))
    layers, members = named_layers(uses, blocks(params))
    taps = {
        path: jnp.zeros((count, *uses.layers[path].tap), dtype)
        for path in {path for uses_of_one in members for path, _ in uses_of_one}
    }

    def forward(taps: Any) -> Any:
        def one(example: Batch, taps: Any) -> Any:
            values = [*leaves, *jax.tree.leaves(example)]
            return run(program.jaxpr, program.consts, values, taps, uses.layers)

        results, inputs = each_example(one, batch, taps)
        outputs = [result.reshape(shape) for result, shape in zip(results, shapes, strict=True)]
        require_floating(outputs, "output of predict")
        return ravel(outputs), (outputs, _by_layer(members, inputs))

    vector, pullback, (outputs, inputs) = jax.vjp(forward, taps, has_aux=True)
    inputs = [
        value if layer.one_hot else value.astype(dtype) for value, layer in zip(inputs, layers, strict=True)
    ]
    back = jax.tree_util.Partial(_pull, Static((members, vector.dtype)), pullback)
    return jax.tree.structure(of_all).unflatten(outputs), inputs, back, Static((shapes, layers))


@compiled
def _pulled_back(back: Callable[[Vector], list[Vector]], cotangents: Vector) -> list[Vector]:
    # Not in a loop: within one, XLA's compiler for the host makes slow convolutions.
    derivatives: list[Vector] = each(back, cotangents)
    return derivatives


def _pull(form: Static, pullback: Any, cotangent: Vector) -> list[Vector]:
    members, dtype = form.value
    return _by_layer(members, pull(pullback, cotangent.astype(dtype)))


def _by_layer(members: Members, values: dict[Path, jax.Array]) -> list[jax.Array]:
    """For each layer what its uses have, ``(B, iterations …, S, …)`` each, side by side: ``(B, S, …)``."""

    def of_use(path: Path, iteration: tuple[int | None, ...]) -> jax.Array:
        value = values[path][(slice(None), *(slice(None) if i is None else i for i in iteration))]
        shared = 2 + iteration.count(None)
        return value.reshape(len(value), math.prod(value.shape[1:shared]), *value.shape[shared:])

    return [jnp.concatenate([of_use(*use) for use in uses], axis=1) for uses in members]


def _views(leaves: list[Any], inputs: int) -> list[View | None]:
    """The inputs of a program, of which the parameters are the first."""
    vector = np.empty(sum(map(jnp.size, leaves)), np.int8)
    parts = np.split(vector, np.cumsum([jnp.size(leaf) for leaf in leaves])[:-1])
    views = [View(part.reshape(leaf.shape), vector) for part, leaf in zip(parts, leaves, strict=True)]
    return [*views, *[None] * (inputs - len(views))]


def _shapes(one: list[Any], every: list[Any], count: int) -> tuple[tuple[int, ...], ...]:
    """The shapes of a model's outputs for all examples, if those for one stand one after another in them."""
    for alone, together in zip(one, every, strict=True):
        in_rows = (count, *alone.shape)
        merged = (count * alone.shape[0], *alone.shape[1:]) if alone.ndim else in_rows
        if together.shape not in (in_rows, merged):
            raise LossError(
                f"The model returned an array of shape {alone.shape} for one example, and of shape "
                f"{together.shape} for {count}; expected the examples along the first axis. Return what "
                "belongs to single examples."
            )
    return tuple(together.shape for together in every)
