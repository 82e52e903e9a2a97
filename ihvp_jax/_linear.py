"""The operations that are linear maps of an input with a weight: ``dot_general``, convolutions, lookups."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ihvp.layers import Layer
from ihvp_jax._view import View


@dataclass(frozen=True)
class Linear:
    """One operation ``y = W x``."""

    weight: View
    # The shape in which the weight is stored, and the permutation to (groups · d_out, d_in).
    stored: tuple[tuple[int, ...], tuple[int, ...]]
    groups: int
    d_out: int
    d_in: int
    operand: int  # which operand x is
    # Turns x into (S, groups, d_in), or into indices (S,) of unit vectors.
    read: Callable[[jax.Array], jax.Array]
    order: tuple[int, ...]  # the permutation of the axes of y after which it reads (S, groups, d_out)
    shape: tuple[int, ...]  # that of y
    one_hot: bool = False

    @property
    def given(self) -> tuple[int, int, int]:
        """``(S, groups, d_out)``."""
        return math.prod(self.shape) // (self.groups * self.d_out), self.groups, self.d_out

    @property
    def tap(self) -> tuple[int, ...]:
        """The shape of what is added to y: ``(S, groups, d_out)`` in each iteration of the loops around."""
        return *(length for length, _ in self.weight.loops), *self.given

    def place(self, given: jax.Array) -> jax.Array:
        """An array ``(S, groups, d_out)`` in the shape of y."""
        inverse = np.argsort(self.order)
        return given.reshape([self.shape[axis] for axis in self.order]).transpose(*inverse)

    def layer(self, iteration: tuple[int | None, ...]) -> Layer:
        """The layer that this is a use of, in one iteration of each loop around; without name and bias."""
        shape, axes = self.stored
        start = self.weight.at(iteration)
        return Layer("", start, shape, axes, self.d_in, self.d_out, self.groups, one_hot=self.one_hot)

    def output(self, layer: tuple[int, ...]) -> View:
        """Which of the ``groups · d_out`` numbers of one place y's are."""
        numbers = np.empty(self.groups * self.d_out, np.int8)
        places = np.broadcast_to(numbers, (self.given[0], numbers.size))
        array = places.reshape([self.shape[axis] for axis in self.order]).transpose(np.argsort(self.order))
        return View(array, numbers, layer=layer)


def linear(equation: Any, operand: int, weight: View) -> Linear | None:
    """The linear map that an operation is whose given operand is a weight; None if it is none.

    Nor does it count where other numbers lie between those of the weight.
    """
    rule = _RULES.get(equation.primitive.name)
    return rule(equation, operand, weight) if rule and weight.array.size else None


def _dot(equation: Any, operand: int, weight: View) -> Linear | None:
    x, ndim = 1 - operand, [variable.aval.ndim for variable in equation.invars]
    contracted, batch = equation.params["dimension_numbers"]
    free = [[axis for axis in range(ndim[i]) if axis not in (*contracted[i], *batch[i])] for i in (0, 1)]
    # The axes of y are those of the groups, then the free ones of the left, then those of the right.
    n = len(batch[0])
    left, right = range(n, n + len(free[0])), range(n + len(free[0]), n + len(free[0]) + len(free[1]))
    axes = (*batch[operand], *free[operand], *contracted[operand])
    sizes = weight.array.transpose(axes).shape
    rows = n + len(free[operand])
    stored = weight.stored(axes, rows)
    if stored is None:
        return None
    groups, d_in = math.prod(sizes[:n]), math.prod(sizes[rows:])

    def read(value: jax.Array) -> jax.Array:
        places = value.transpose(*free[x], *batch[x], *contracted[x])
        return places.reshape(value.size // (groups * d_in), groups, d_in)

    return Linear(
        weight=weight,
        stored=stored,
        groups=groups,
        d_out=math.prod(sizes[n:rows]),
        d_in=d_in,
        operand=x,
        read=read,
        order=(*(left, right)[x], *range(n), *(left, right)[operand]),
        shape=equation.outvars[0].aval.shape,
    )


def _convolution(equation: Any, operand: int, weight: View) -> Linear | None:
    params, shape = equation.params, equation.outvars[0].aval.shape
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    if operand != 1 or params["batch_group_count"] != 1:
        return None
    batch, features, *places = numbers.out_spec
    array = weight.array.transpose(numbers.rhs_spec)
    stored = weight.stored(numbers.rhs_spec, 1)
    if stored is None:
        return None
    kernel, d_in = array.shape[2:], math.prod(array.shape[1:])

    def read(value: jax.Array) -> jax.Array:
        stretched = [
            (*ends, step - 1) for ends, step in zip(params["padding"], params["lhs_dilation"], strict=True)
        ]
        padded = jax.lax.pad(
            value.transpose(numbers.lhs_spec), jnp.zeros((), value.dtype), [(0, 0, 0), (0, 0, 0), *stretched]
        )
        sizes, strides = [shape[axis] for axis in places], params["window_strides"]

        def under(offset: tuple[int, ...]) -> jax.Array:
            first = [place * step for place, step in zip(offset, params["rhs_dilation"], strict=True)]
            last = [a + (size - 1) * step + 1 for a, size, step in zip(first, sizes, strides, strict=True)]
            return jax.lax.slice(padded, (0, 0, *first), (*padded.shape[:2], *last), (1, 1, *strides))

        patches = jnp.stack([under(offset) for offset in product(*map(range, kernel))], axis=2)
        return jnp.moveaxis(patches, (1, 2), (-2, -1)).reshape(-1, groups, d_in)

    return Linear(
        weight=weight,
        stored=stored,
        groups=groups,
        d_out=array.shape[0] // groups,
        d_in=d_in,
        operand=0,
        read=read,
        order=(batch, *places, features),
        shape=shape,
    )


def _lookup(equation: Any, operand: int, weight: View) -> Linear | None:
    params, shape, table = equation.params, equation.outvars[0].aval.shape, weight.array
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    cut = [axis for axis in range(table.ndim) if sizes[axis] != table.shape[axis]]
    if operand != 0 or numbers.operand_batching_dims or len(cut) != 1 or sizes[cut[0]] != 1:
        return None
    (axis,), fills = cut, params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP
    # What is filled in is no number of the table: NaN says so itself, and another number hides it.
    hides = params["fill_value"] is not None and not np.isnan(params["fill_value"])
    if fills and (hides or len(numbers.start_index_map) > 1):
        return None
    others = [other for other in range(table.ndim) if other != axis]
    stored = weight.stored((*others, axis), len(others))
    if stored is None:
        return None
    kept = [other for other in range(table.ndim) if other not in numbers.collapsed_slice_dims]
    places = [place for place in range(len(shape)) if place not in numbers.offset_dims]
    places += [place for place, other in zip(numbers.offset_dims, kept, strict=True) if other == axis]

    def read(value: jax.Array) -> jax.Array:
        return jnp.clip(value[..., numbers.start_index_map.index(axis)].ravel(), 0, table.shape[axis] - 1)

    return Linear(
        weight=weight,
        stored=stored,
        groups=1,
        d_out=math.prod(table.shape[other] for other in others),
        d_in=table.shape[axis],
        operand=1,
        read=read,
        order=(*places, *(place for place in range(len(shape)) if place not in places)),
        shape=shape,
        one_hot=True,
    )


_RULES: dict[str, Callable[[Any, int, View], Linear | None]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "gather": _lookup,
}
