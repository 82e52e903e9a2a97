"""The moments that Kronecker factors are made of, summed batch by batch."""

from __future__ import annotations

import functools
import operator
from typing import Any, Literal, TypeAlias

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.layers import Layer

Sharing: TypeAlias = Literal["expand", "reduce"]

# Gradients of a layer for single examples hold at most so many numbers at once (64 MiB in float32).
_NUMBERS = 1 << 24


def with_bias(layer: Layer, inputs: Vector) -> Vector:
    """The inputs ``(B, S, groups, d_in)`` with a 1 at the end, where the layer has a bias."""
    if layer.bias is None or layer.one_hot:
        return inputs
    xp = array_api_compat.array_namespace(inputs)
    ones = xp.ones((*inputs.shape[:-1], 1), dtype=inputs.dtype, device=algebra.device(inputs))
    return xp.concat([inputs, ones], axis=-1)


@algebra.fused()
def weight_gradients(gradient: Vector, inputs: Vector) -> Vector:
    """``Σ_s g aᵀ`` of each example, ``(…, B, groups, d_out, d_in)``.

    Of ``gradient``, ``(…, B, S, groups, d_out)``, and the ``inputs`` with their bias.
    """
    xp = array_api_compat.array_namespace(gradient)
    *before, places, groups, outputs = range(gradient.ndim)
    return xp.permute_dims(gradient, (*before, groups, outputs, places)) @ xp.permute_dims(
        inputs, (0, 2, 1, 3)
    )


def moment_shapes(layer: Layer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of a layer's moments of inputs and of outputs."""
    d_in = layer.d_in + (layer.bias is not None)
    outputs = (layer.groups, layer.d_out, layer.d_out)
    return (d_in,) if layer.one_hot else (layer.groups, d_in, d_in), outputs


def input_moment(
    layer: Layer, inputs: Vector, weights: NDArray[np.float64], sharing: Sharing, like: Vector
) -> Vector:
    """``Σ_n w_n (1/S) Σ_s a aᵀ``, or ``Σ_n w_n ā āᵀ`` with the mean ā over s: ``(groups, d_in, d_in)``.

    Of indices the first one, which is diagonal: ``(d_in,)``. ``sharing`` is Martens and Grosse's sum over
    places, or their mean first (Eschenhagen et al., NeurIPS 2023). Inputs, and pulled-back gradients in all
    of this module, are as :class:`~ihvp.backend.OpenModel` gives them; ``like`` has the parameters' dtype.
    """
    if layer.one_hot:
        places = algebra.to_numpy(inputs)
        shares = np.repeat(weights / places.shape[1], places.shape[1])
        return algebra.as_like(np.bincount(places.ravel(), shares, minlength=layer.d_in), like)
    share = weights / (1 if sharing == "reduce" else inputs.shape[1])
    equal = share.min() == share.max()
    return _input_moment(inputs, float(share[0]) if equal else algebra.as_like(share, inputs), layer, sharing)


@algebra.fused(fixed=(2, 3))
def _input_moment(inputs: Vector, share: Vector | float, layer: Layer, sharing: Sharing) -> Vector:
    xp, a = array_api_compat.array_namespace(inputs), with_bias(layer, inputs)
    if sharing == "reduce":
        a = xp.mean(a, axis=1, keepdims=True)
    if np.ndim(share) == 0:
        return _moment(a, a) * share
    return _moment(a, a * share[:, None, None, None])  # type: ignore[index]


@algebra.fused(fixed=(1,))
def output_moment(gradients: Vector, sharing: Sharing) -> Vector:
    """``Σ g gᵀ`` over cotangents, examples and places, or of sums over places: ``(groups, d_out, d_out)``."""
    xp = array_api_compat.array_namespace(gradients)
    g = xp.sum(gradients, axis=2) if sharing == "reduce" else gradients
    g = xp.reshape(g, (-1, *gradients.shape[-2:]))
    return _moment(g[:, None], g[:, None])


def squared_gradients(layer: Layer, inputs: Vector, gradients: Vector, q_in: Vector, q_out: Vector) -> Vector:
    """``Σ_v Σ_n (Q_Bᵀ (Σ_s g aᵀ) Q_A)²``, entry by entry, ``(groups, d_out, d_in)``.

    The diagonal of a Fisher matrix in the basis of Kronecker factors (George et al., "Fast approximate
    natural gradient descent in a Kronecker-factored eigenbasis", NeurIPS 2018, equation 11).
    """
    xp = array_api_compat.array_namespace(gradients)
    views, count, places = gradients.shape[:3]
    # (groups, V, B, S, d_out)
    g = _rotated(gradients, q_out, (3, 0, 1, 2, 4))
    if layer.one_hot:
        return _squares_of_rows(layer, algebra.to_numpy(inputs), g)
    # A gradient has d_out rows to be rotated; its inputs are more where many places share weights.
    afterwards = places > views * layer.d_out
    a = with_bias(layer, inputs)
    a = xp.permute_dims(a, (2, 0, 1, 3)) if afterwards else _rotated(a, q_in, (2, 0, 1, 3))
    if places == 1:
        return _squares_of_places(g, a)
    rows = max(1, _NUMBERS // (views * layer.groups * layer.d_out * a.shape[-1]))
    parts = (slice(start, start + rows) for start in range(0, count, rows))
    q = q_in if afterwards else None
    return functools.reduce(operator.add, (_squares(g[:, :, part], a[:, part], q) for part in parts))


@algebra.fused()
def _squares_of_places(g: Vector, a: Vector) -> Vector:
    """``Σ_v Σ_n`` of the squares of ``g aᵀ`` where an example has one place."""
    xp = array_api_compat.array_namespace(g)
    squares = xp.sum(g[:, :, :, 0, :] ** 2, axis=1)
    return xp.matrix_transpose(squares) @ a[:, :, 0, :] ** 2


@algebra.fused()
def _squares(g: Vector, a: Vector, q: Vector | None) -> Vector:
    """The same where it has several, of ``Σ_s g aᵀ`` times q."""
    xp = array_api_compat.array_namespace(g)
    single = xp.matrix_transpose(g) @ a[:, None]
    if q is not None:
        single = _rotated(single, q, (0, 1, 2, 3, 4))
    return xp.sum(single**2, axis=(1, 2))


@algebra.fused(fixed=(2,))
def _rotated(rows: Vector, q: Vector, axes: tuple[int, ...]) -> Vector:
    """``(groups, …, d)``, after a permutation of the axes, times ``(groups, d, d)``."""
    xp = array_api_compat.array_namespace(rows)
    rows = xp.permute_dims(rows, axes)
    return xp.reshape(xp.reshape(rows, (rows.shape[0], -1, rows.shape[-1])) @ q, rows.shape)


def _squares_of_rows(layer: Layer, indices: NDArray[Any], g: Vector) -> Vector:
    """The same for unit vectors: gradients of places with one index in one example add up."""
    count, places = indices.shape
    keys = (np.arange(count)[:, None] * layer.d_in + indices).ravel()
    order = np.argsort(keys, kind="stable")
    distinct, starts = np.unique(keys[order], return_index=True)
    # (B S, V d_out), which numpy can sum in segments.
    rows = algebra.to_numpy(g)[0].transpose(1, 2, 0, 3).reshape(count * places, -1)
    sums = np.add.reduceat(rows[order], starts, axis=0).reshape(len(distinct), -1, layer.d_out)
    total = np.zeros((layer.d_in, layer.d_out), sums.dtype)
    np.add.at(total, distinct % layer.d_in, (sums**2).sum(axis=1))
    return algebra.as_like(total.T[None], g)


def _moment(x: Vector, y: Vector) -> Vector:
    """``Σ x yᵀ`` over all but the axes of groups and entries, ``(groups, d, d)``."""
    xp = array_api_compat.array_namespace(x)
    if x.shape[-2] == 1:
        return (xp.reshape(x, (-1, x.shape[-1])).T @ xp.reshape(y, (-1, x.shape[-1])))[None]
    x, y = (xp.reshape(xp.permute_dims(z, (2, 0, 1, 3)), (z.shape[2], -1, z.shape[-1])) for z in (x, y))
    return xp.matrix_transpose(x) @ y
