"""Square roots of the curvature of a loss in a model's outputs, as vectors to pull back."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, Protocol, TypeAlias

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Batch, OpenModel, Vector
from ihvp.errors import InvalidOption

FisherKind: TypeAlias = Literal["exact", "mc", "empirical"]

# Cotangents at once hold at most so many numbers (128 MiB in float32).
_NUMBERS = 1 << 25
# Roundings of a product with the outputs' curvature are within so many √ε of its size; in half precision,
# where that would be a large part of it, within so many ε.
_ROUNDING, _ROUNDING_OF_HALF, _HALF = 4.0, 8.0, 1e-5


def cotangents(
    model: OpenModel,
    loss: Callable[[Any, Batch], Any],
    relative: NDArray[np.float64],
    eps: float,
    fisher: FisherKind,
    num_samples: int = 1,
    seed: int = 0,
) -> Iterator[Vector]:
    r"""Vectors c with :math:`\sum_v c_v c_v^\top` the curvature of the loss of a batch in its outputs.

    That sum is meant for each example: products of different examples' entries do not count. ``"exact"`` has
    one vector for each output of an example, ``"mc"`` draws ``num_samples`` of which the sum is the
    expectation, and which depend on the seed and the outputs alone, ``"empirical"`` takes the gradients of
    the examples' losses.

    ``relative`` is the factor with which each example's own loss enters that of the batch, ``(B,)``, and
    ``eps`` the machine epsilon that the model computes with. Yields ``(V, F)``, as many at once as keep
    memory bounded. An InvalidOption says that the loss is not convex in the outputs, or mixes those of
    different examples.
    """
    outputs = model.outputs()
    layout = Layout(model.shapes)
    if fisher == "empirical":
        factors = np.divide(1.0, relative**0.5, out=np.zeros_like(relative), where=relative > 0)
        gradient = layout.rows(model.output_gradient(loss)[:, None])[..., 0]
        yield layout.flat((gradient * algebra.as_like(factors, outputs)[:, None])[..., None])
        return
    rounding = _ROUNDING * eps**0.5 if eps < _HALF else _ROUNDING_OF_HALF * eps
    root = _root(model, loss, outputs, layout, rounding)
    if fisher == "mc":
        seen = zlib.crc32(np.ascontiguousarray(algebra.to_numpy(outputs)).tobytes())
        yield root.draw(num_samples, np.random.default_rng([seed, seen]))
        return
    at_once = max(1, _NUMBERS // outputs.shape[0])
    for start in range(0, layout.width, at_once):
        yield root.columns(start, min(start + at_once, layout.width))


class Layout:
    """Where the outputs of each example stand among all: ``(B, D)`` for ``(F,)``."""

    def __init__(self, shapes: Any) -> None:
        self.count: int = shapes[0][0]
        self.widths = [prod(shape[1:]) for shape in shapes]
        self.width: int = sum(self.widths)
        # An array of one kind of numbers for each place: the last axis is what a loss may normalise over.
        self.last = shapes[0][-1] if len(shapes) == 1 and len(shapes[0]) > 1 else 0

    def rows(self, block: Vector) -> Vector:
        """``(B, D, k)`` for ``(F, k)``."""
        xp, start, parts = array_api_compat.array_namespace(block), 0, []
        for width in self.widths:
            stop = start + self.count * width
            parts.append(xp.reshape(block[start:stop, :], (self.count, width, block.shape[1])))
            start = stop
        return parts[0] if len(parts) == 1 else xp.concat(parts, axis=1)

    def flat(self, rows: Vector) -> Vector:
        """``(k, F)`` for ``(B, D, k)``."""
        xp, start, parts = array_api_compat.array_namespace(rows), 0, []
        for width in self.widths:
            part = xp.permute_dims(rows[:, start : start + width, :], (2, 0, 1))
            parts.append(xp.reshape(part, (rows.shape[2], self.count * width)))
            start += width
        return parts[0] if len(parts) == 1 else xp.concat(parts, axis=1)


class _Root(Protocol):
    """A matrix R_n for each example with ``R_n R_nᵀ`` its curvature."""

    def columns(self, start: int, stop: int) -> Vector:
        """Columns ``start:stop`` of all R_n, ``(stop − start, F)``."""

    def draw(self, count: int, generator: np.random.Generator) -> Vector:
        """Random vectors whose outer products have the mean ``R_n R_nᵀ / count`` each, ``(count, F)``."""


class _Dense:
    """Any curvature, by its own eigenvectors."""

    def __init__(self, layout: Layout, curvature: Vector, rounding: float) -> None:
        self._layout = layout
        matrices = algebra.to_numpy(curvature)
        values, vectors = np.linalg.eigh((matrices + matrices.transpose(0, 2, 1)) / 2)
        if values.size and values.min() < -rounding * np.abs(values).max():
            raise _not_convex(float(values.min()))
        self._roots = algebra.as_like(vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :], curvature)

    def columns(self, start: int, stop: int) -> Vector:
        return self._layout.flat(self._roots[:, :, start:stop])

    def draw(self, count: int, generator: np.random.Generator) -> Vector:
        signs = _signs(self._roots, (self._layout.count, self._layout.width, count), generator)
        return self._layout.flat(self._roots @ signs)


@dataclass(frozen=True, eq=False)
class _Diagonal:
    """Outputs that the loss treats one by one, as squared error and binary cross-entropy do."""

    _layout: Layout
    _roots: Vector

    def columns(self, start: int, stop: int) -> Vector:
        xp, device = array_api_compat.array_namespace(self._roots), algebra.device(self._roots)
        size = stop - start
        units = xp.eye(self._layout.width, size, k=-start, dtype=self._roots.dtype, device=device)
        return self._layout.flat(self._roots[:, :, None] * units[None, :, :])

    def draw(self, count: int, generator: np.random.Generator) -> Vector:
        signs = _signs(self._roots, (*self._roots.shape, count), generator)
        return self._layout.flat(self._roots[:, :, None] * signs)


@dataclass(frozen=True, eq=False)
class _Categorical:
    """Cross-entropy after a softmax: ``w (diag p − p pᵀ) = Σ_c w p_c (e_c − p)(e_c − p)ᵀ``."""

    _layout: Layout
    _weights: Vector
    _p: Vector  # the probabilities

    def columns(self, start: int, stop: int) -> Vector:
        xp, classes, found = array_api_compat.array_namespace(self._p), self._p.shape[-1], []
        places = self._layout.width // classes
        for column in range(start, stop):
            place, label = divmod(column, classes)
            unit = algebra.as_like(np.arange(classes) == label, self._p)
            chosen = algebra.as_like(np.arange(places) == place, self._p) if places > 1 else None
            found.append(_categorical_column(self._p, self._weights, self._p[:, label], unit, chosen))
        return xp.concat(found, axis=0)

    def draw(self, count: int, generator: np.random.Generator) -> Vector:
        xp = array_api_compat.array_namespace(self._p)
        cumulative = np.cumsum(algebra.to_numpy(self._p).astype(np.float64), axis=-1)
        found = []
        for _ in range(count):
            level = generator.random((len(cumulative), 1)) * cumulative[:, -1:]
            labels = np.minimum((cumulative <= level).sum(axis=-1), cumulative.shape[-1] - 1)
            units = np.zeros(cumulative.shape)
            units[np.arange(len(labels)), labels] = 1.0
            # Places of one example are drawn alone, so that their products have the mean zero.
            root = xp.sqrt(self._weights / count)[:, None] * (algebra.as_like(units, self._p) - self._p)
            found.append(xp.reshape(root, (1, -1)))
        return xp.concat(found, axis=0)


def _root(
    model: OpenModel, loss: Callable[[Any, Batch], Any], outputs: Vector, layout: Layout, rounding: float
) -> _Root:
    """The root in the simple form that fits two random products best, if but for such a part of them."""
    xp = array_api_compat.array_namespace(outputs)
    generator = np.random.default_rng(0)
    probe = algebra.as_like(generator.standard_normal((outputs.shape[0], 2)), outputs)
    products = model.output_hvp(loss, probe)
    size = float(algebra.norms(products).max())
    if not np.isfinite(size):
        raise InvalidOption("loss", loss, "a loss whose curvature in the outputs is finite")
    allowed = rounding * size

    def misfit(expected: Vector) -> float:
        return float(algebra.norms(products - expected).max())

    diagonal = products[:, 0] / probe[:, 0]
    of_diagonal = misfit(diagonal[:, None] * probe)
    if layout.last > 1:
        weights, p, expected = _categorical(outputs, probe, products, layout.last)
        of_categorical = misfit(expected)
        # Of few outputs in half precision, both may be near enough.
        if of_categorical <= min(allowed, of_diagonal) and float(xp.min(weights)) >= 0:
            return _Categorical(layout, weights, p)
    if of_diagonal <= allowed:
        if float(xp.min(diagonal)) < -allowed:
            raise _not_convex(float(xp.min(diagonal)))
        roots = xp.sqrt(xp.where(diagonal > 0, diagonal, xp.zeros_like(diagonal)))
        return _Diagonal(layout, layout.rows(roots[:, None])[..., 0])
    units = xp.zeros((layout.count, layout.width, 1), dtype=outputs.dtype) + xp.eye(
        layout.width, dtype=outputs.dtype, device=algebra.device(outputs)
    )
    matrices = layout.rows(model.output_hvp(loss, layout.flat(units).T))
    expected = layout.flat(matrices @ layout.rows(probe)).T
    if not misfit(expected) <= allowed:
        raise InvalidOption(
            "loss",
            loss,
            "a loss that is a mean over examples of functions of their own outputs: its curvature mixes the "
            "outputs of different examples",
        )
    return _Dense(layout, matrices, rounding)


@algebra.fused(fixed=(3,))
def _categorical(
    outputs: Vector, probe: Vector, products: Vector, classes: int
) -> tuple[Vector, Vector, Vector]:
    """The weights, probabilities and products with the probe of the softmax that fits best."""
    xp = array_api_compat.array_namespace(outputs)
    logits = xp.reshape(outputs, (-1, classes))
    p = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
    p = p / xp.sum(p, axis=-1, keepdims=True)
    r, q = (xp.reshape(block, (*p.shape, 2)) for block in (probe, products))
    unit = p[..., None] * (r - xp.sum(p[..., None] * r, axis=1, keepdims=True))
    squares = xp.sum(unit**2, axis=(1, 2))
    tiny = xp.finfo(p.dtype).smallest_normal
    weights = xp.sum(unit * q, axis=(1, 2)) / xp.where(squares > tiny, squares, xp.ones_like(squares))
    return weights, p, xp.reshape(weights[:, None, None] * unit, products.shape)


@algebra.fused()
def _categorical_column(
    p: Vector, weights: Vector, of_label: Vector, unit: Vector, chosen: Vector | None
) -> Vector:
    """The root's column of one label, at the chosen place of each example, ``(1, F)``."""
    xp = array_api_compat.array_namespace(p)
    root = xp.sqrt(weights * of_label)[:, None] * (unit - p)
    if chosen is not None:
        root = xp.reshape(root, (-1, chosen.shape[0], p.shape[-1])) * chosen[None, :, None]
    return xp.reshape(root, (1, -1))


def _signs(x: Vector, shape: tuple[int, ...], generator: np.random.Generator) -> Vector:
    """Random signs over √count, the last axis."""
    return algebra.as_like((2.0 * generator.integers(0, 2, shape) - 1.0) / shape[-1] ** 0.5, x)


def _not_convex(lowest: float) -> InvalidOption:
    return InvalidOption(
        "loss",
        "not convex in the outputs",
        f"one that is, or fisher='empirical': the lowest curvature is {lowest:.1e}",
    )
