"""The derivatives of a model's outputs by the parameters, for some examples at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.arguments import naming
from ihvp.backend import Batch, OpenModel, Predict, SupportsLayers, Vector
from ihvp.data import take_examples
from ihvp.errors import InvalidOption, LossFailed
from ihvp.kronecker import estimate
from ihvp.kronecker.coverage import complete_layers, cotangent_rows, opened
from ihvp.kronecker.factors import weight_gradients, with_bias
from ihvp.kronecker.outputs import Layout, cotangents
from ihvp.layers import Layer
from ihvp.memory import on_host
from ihvp.objective import Objective

# Derivatives of outputs hold at most so many numbers at once (64 MiB in float32).
_NUMBERS = 1 << 24
# Of models with more outputs, a Gauss-Newton matrix is formed faster by its products.
_OUTPUTS = 20
# Rows that are multiplied at once, which stay in a processor's cache (1 MiB in float64).
_CACHED = 1 << 17
# So many times fewer units than parameters, for each derivative; the most numbers for a unit of all layers.
_UNITS, _WIDEST = 8, 1 << 18

Pulled: TypeAlias = dict[str, tuple[Layer, Vector, Vector]]


def require_layers(objective: Objective) -> None:
    """Refuse a backend that cannot open models."""
    advice = "The outputs of a model are pulled back by it: put the model in torch, TensorFlow or JAX."
    estimate.require_layers(objective, advice)


def explained(objective: Objective, predict: Predict, batch: Batch) -> bool:
    """Whether each parameter belongs to a layer that was seen whole, so that rows are outer products."""
    layers = complete_layers(objective, predict, batch)[0].values()
    covered = sum(part.stop - part.start for layer in layers for part in layer.slices)
    return covered == objective.num_params and not any(layer.one_hot for layer in layers)


def opened_pieces(
    objective: Objective, *, formed: bool = True
) -> Iterator[tuple[int, Batch, OpenModel, Layout]]:
    """Some examples of a batch after the other, with its index, the model on them and their outputs' layout.

    They are so few that the derivatives of their outputs stay bounded: those by the parameters where they are
    ``formed`` or places share weights, those by what layers give elsewhere.
    """
    predict, _ = objective.require_predict()
    for index, (batch, count) in enumerate(objective.batches):
        with naming(LossFailed, "The model"):
            whole = opened(objective, predict, batch)
        layout = Layout(whole.shapes)
        places = [(layer, inputs.shape[1]) for layer, inputs in zip(whole.layers, whole.inputs, strict=True)]
        numbers = sum(uses * layer.groups * layer.d_out for layer, uses in places)
        if formed or any(uses > 1 for _, uses in places):
            numbers += objective.num_params
        rows = max(1, _NUMBERS // (layout.width * numbers))
        if rows >= count:
            yield index, batch, whole, layout
            continue
        for start in range(0, count, rows):
            piece = take_examples(batch, start, start + rows)
            model = opened(objective, predict, piece)
            yield index, piece, model, Layout(model.shapes)


def unit_cotangents(layout: Layout, like: Vector) -> Vector:
    """For each output of an example the cotangents that are 1 there, ``(D, F)``."""
    xp = array_api_compat.array_namespace(like)
    eye = xp.eye(layout.width, dtype=like.dtype, device=algebra.device(like))
    return layout.flat(xp.broadcast_to(eye, (layout.count, *eye.shape)))


def pulled_layers(model: OpenModel, cotangents: Vector) -> Pulled:
    """Each layer with its inputs ``(B, S, groups, d_in)`` and derivatives ``(D, B, S, groups, d_out)``."""
    triples = zip(model.layers, model.inputs, model.pull_back(cotangents), strict=True)
    return {layer.name: (layer, with_bias(layer, inputs), gradient) for layer, inputs, gradient in triples}


def jacobian(
    objective: Objective, predict: Predict, batch: Batch, model: OpenModel, cotangents: Vector
) -> Vector:
    """``Jᵀ c`` of each example for the cotangents ``(V, F)``, ``(P, V B)``."""
    xp = array_api_compat.array_namespace(cotangents)
    return xp.concat(list(cotangent_rows(objective, predict, batch, model, cotangents)), axis=0).T


def rows_of(pulled: Pulled) -> Vector:
    """The same, ``(P, V B)``, by layers that have all parameters."""
    parts: dict[int, Vector] = {}
    for layer, inputs, gradient in pulled.values():
        xp = array_api_compat.array_namespace(gradient)
        matrices = weight_gradients(gradient, inputs)
        flat = layer.parts(xp.reshape(matrices, (-1, *matrices.shape[2:])))
        parts |= {place.start: part for place, part in zip(layer.slices, flat, strict=True)}
    xp = array_api_compat.array_namespace(*parts.values())
    # Row by row as they are, without a transposition.
    return xp.concat([parts[start].T for start in sorted(parts)], axis=1).T


def sums_first(objective: Objective, pulled: Pulled) -> bool:
    """Whether the sum over V derivatives is to come before products of rows, which are ``g ⊗ a`` then.

    They are where each layer serves one place of an example. It pays on the host for several derivatives, and
    layers that are not so wide that their inputs are few beside their outputs.
    """
    gradients = [gradient for _, _, gradient in pulled.values()]
    units, size = [g.shape[-1] for g in gradients], objective.num_params
    if not on_host(objective.space) or any(g.shape[2:4] != (1, 1) for g in gradients):
        return False
    return bool(_UNITS * sum(units) <= (len(gradients[0]) - 1) * size and max(units) * size <= _WIDEST)


def gram_of_roots(pulled: Pulled, root: Vector) -> NDArray[Any]:
    """``J Wᵀ W Jᵀ`` of each example, ``(B, V, V)``, for W, ``(m, P)``, where :func:`sums_first`.

    W is contracted with a layer's inputs before its V derivatives, at the cost of one of these in place of V.
    """
    root = algebra.to_numpy(root)
    layers = [
        (
            np.moveaxis(layer.read(root.T)[:, 0], 0, 2),  # (d_out, d_in, m)
            algebra.to_numpy(inputs)[:, 0, 0],
            np.moveaxis(algebra.to_numpy(gradient)[:, :, 0, 0], 0, 1),
        )
        for layer, inputs, gradient in pulled.values()
    ]
    count, widest = len(layers[0][1]), max(weights.shape[0] for weights, _, _ in layers)
    step, found = max(1, 8 * _CACHED // (widest * len(root))), []
    for start in range(0, count, step):
        some = slice(start, start + step)
        rows = sum(
            gradient[some] @ np.moveaxis(inputs[some] @ weights, 0, 1) for weights, inputs, gradient in layers
        )
        found.append(rows @ rows.transpose(0, 2, 1))
    return np.concatenate(found)


def square_of_rows(pulled: Pulled, size: int) -> NDArray[Any]:
    """``Σ_n Σ_v J_nᵀ c_v c_vᵀ J_n``, ``(P, P)``, where :func:`sums_first`.

    With ``g ⊗ a`` for rows it is ``Σ_n (Σ_v g gᵀ) ⊗ (a aᵀ)``: V derivatives take the time of one.
    """
    layers = [layer for layer, _, _ in pulled.values()]
    inputs = [algebra.to_numpy(a)[:, 0, 0] for _, a, _ in pulled.values()]
    gradient = np.concatenate([algebra.to_numpy(g)[:, :, 0, 0] for _, _, g in pulled.values()], axis=2)
    ends = np.cumsum([layer.d_out for layer in layers])
    square = np.zeros((size, size), gradient.dtype)
    step = max(1, _CACHED // size)
    for start in range(0, gradient.shape[1], step):
        some, stop = slice(start, start + step), 0
        part = gradient[:, some]
        moments = part.transpose(1, 2, 0) @ part.transpose(1, 0, 2)  # (b, units, units)
        for own, layer in enumerate(layers):
            for unit in range(ends[own] - layer.d_out, ends[own]):
                # With this unit and those after it; the others are their mirror image.
                weighted = [
                    moments[:, unit, max(unit, end - other.d_out) : end, None] * a[some, None, :]
                    for other, end, a in zip(layers[own:], ends[own:], inputs[own:], strict=True)
                ]
                flat = np.concatenate([part.reshape(len(part), -1) for part in weighted], axis=1)
                width = inputs[own].shape[1]
                square[stop : stop + width, size - flat.shape[1] :] += inputs[own][some].T @ flat
                stop += width
    lower = np.tril_indices(size, -1)
    square[lower] = square.T[lower]
    places = np.concatenate([layer.read(np.arange(size)[:, None]).ravel() for layer in layers])
    found = np.empty_like(square)
    found[np.ix_(places, places)] = square
    return found


def gauss_newton_matrix(objective: Objective) -> Vector | None:
    """The Gauss-Newton matrix as ``Σ_n J_nᵀ R_n R_nᵀ J_n``, where that takes less than products with units.

    R_n is a root of the curvature of an example's loss in its outputs. None where a parameter belongs to no
    layer, outputs are many, or the loss is not convex in them.
    """
    predict, loss = objective.require_predict()
    if not isinstance(objective.backend, SupportsLayers) or objective.processes.count > 1:
        return None
    objective.require_additive()
    total: Vector = None
    for _, piece, model, layout in opened_pieces(objective):
        if total is None and not (layout.width <= _OUTPUTS and explained(objective, predict, piece)):
            return None
        weights = objective.weighting.of(piece, layout.count)
        if not weights.any():
            continue
        relative, unit = objective.relative_weights(weights)
        try:
            roots = list(cotangents(model, loss, relative, objective.space.product_eps, "exact"))
        except InvalidOption:  # of a loss that has no such root
            return None
        for some in roots:
            pulled = pulled_layers(model, some)
            if sums_first(objective, pulled):
                square = square_of_rows(pulled, objective.num_params)
            else:
                # numpy multiplies a matrix and its own transpose in half of the operations.
                factor = rows_of(pulled)
                factor = algebra.to_numpy(factor) if on_host(objective.space) else factor
                square = factor @ factor.T
            square = square * (unit / objective.overall_weight)
            total = square if total is None else total + square
    return None if total is None else objective.space.asarray(total)
