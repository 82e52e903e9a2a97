"""Parts of a block-diagonal matrix, each with everything about it in closed form."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.layers import Layer
from ihvp.space import VectorSpace


class Block(ABC):
    """A symmetric positive semi-definite matrix on some entries of the flat vector, by its eigenvectors."""

    name: str  # of the layer or the parameter
    slices: list[slice]  # the entries
    values: Vector  # the eigenvalues, in an array of any shape
    kind = "exact block, without a layer"

    @property
    def size(self) -> int:
        """The number of entries."""
        return sum(place.stop - place.start for place in self.slices)

    @abstractmethod
    def split(self, damping: float) -> Block:
        """The block with its factors damped one by one; with its eigenvalues damped where it has none."""

    @abstractmethod
    def coordinates(self, v: Vector) -> Vector:
        """``Qᵀ v`` of the entries of a block ``(P, k)``, as ``(k, *values.shape)``."""

    @abstractmethod
    def back(self, values: Vector, coordinates: Vector) -> list[Vector]:
        """``Q (values c)`` of coordinates c: for each of the slices ``(…, k)``."""

    def function(self, v: Vector, of: Callable[[Vector], Vector]) -> list[Vector]:
        """``Q of(values) Qᵀ v`` for the entries of a block ``(P, k)``: for each of the slices ``(…, k)``."""
        return self.back(of(self.values), self.coordinates(v))


class KroneckerBlock(Block):
    """``(Q_B ⊗ Q_A) Λ (Q_B ⊗ Q_A)ᵀ`` for the weights of a layer, its bias among the inputs.

    ``q_in`` is ``(groups, d_in, d_in)``, or None for the identity, ``q_out`` ``(groups, d_out, d_out)``, and
    ``values``, Λ, ``(groups, d_out, d_in)``. Where these are products of the eigenvalues of both factors,
    ``factors`` has them, ``(groups, d_in)`` and ``(groups, d_out)``.
    """

    def __init__(
        self,
        layer: Layer,
        q_in: Vector | None,
        q_out: Vector,
        values: Vector,
        factors: tuple[Vector, Vector] | None = None,
    ) -> None:
        self.layer, self.name, self.slices = layer, layer.name, layer.slices
        self.q_in, self.q_out, self.values, self.factors = q_in, q_out, values, factors
        sizes = values.shape if layer.groups > 1 else values.shape[1:]
        self.kind = f"factors {' × '.join(map(str, sizes))}"

    def split(self, damping: float) -> Block:
        assert self.factors is not None  # EK-FAC has none
        a, b = self.factors
        xp = array_api_compat.array_namespace(a)
        tiny = float(xp.finfo(a.dtype).smallest_normal)
        ratio = float(xp.mean(a)) / max(float(xp.mean(b)), tiny)
        pi = max(ratio, tiny) ** 0.5
        a, b = a + pi * damping**0.5, b + damping**0.5 / pi
        return KroneckerBlock(self.layer, self.q_in, self.q_out, kronecker_values(a, b), (a, b))

    def rotate(self, matrices: Vector) -> Vector:
        """``Q_Bᵀ M Q_A``."""
        return _rotated(matrices, self.q_out, self.q_in)

    def rotate_back(self, values: Vector, matrices: Vector) -> Vector:
        """``Q_B M Q_Aᵀ``, the matrices M times the values."""
        return _back(values, matrices, self.q_out, self.q_in)

    def coordinates(self, v: Vector) -> Vector:
        return _read(v, self.q_out, self.q_in, self.layer)

    def back(self, values: Vector, coordinates: Vector) -> list[Vector]:
        return _parts(values, coordinates, self.q_out, self.q_in, self.layer)


class DenseBlock(Block):
    """A matrix of its own for the entries of one parameter, by its eigenvalues and eigenvectors."""

    def __init__(self, name: str, place: slice, values: Vector, vectors: Vector) -> None:
        self.name, self.slices, self.values, self.vectors = name, [place], values, vectors

    def split(self, damping: float) -> Block:
        return DenseBlock(self.name, self.slices[0], self.values + damping, self.vectors)

    def coordinates(self, v: Vector) -> Vector:
        return v[self.slices[0], :].T @ self.vectors

    def back(self, values: Vector, coordinates: Vector) -> list[Vector]:
        return [self.vectors @ (values * coordinates).T]


class DiagonalBlock(Block):
    """The diagonal alone, ``(n,)``, for the entries of one parameter."""

    kind = "diagonal, without a layer"

    def __init__(self, name: str, place: slice, values: Vector) -> None:
        self.name, self.slices, self.values = name, [place], values

    def split(self, damping: float) -> Block:
        return DiagonalBlock(self.name, self.slices[0], self.values + damping)

    def coordinates(self, v: Vector) -> Vector:
        return v[self.slices[0], :].T

    def back(self, values: Vector, coordinates: Vector) -> list[Vector]:
        return [(values * coordinates).T]


def eigenvectors(matrices: Vector, like: Vector, *, definite: bool = True) -> tuple[Vector, Vector]:
    """Eigenvalues ``(…, n)`` and eigenvectors, like ``like``; of a ``definite`` matrix none is below 0.

    Computed by LAPACK's drivers with workspaces that are counted in integers: some frameworks count them in
    float32, which fails from 2,896 rows on.
    """
    from scipy.linalg import eigh

    symmetric = algebra.to_numpy(matrices)
    flat = symmetric.reshape(-1, *symmetric.shape[-2:])
    found = [eigh((matrix + matrix.T) / 2, driver="evd", overwrite_a=True) for matrix in flat]
    values = np.stack([values for values, _ in found]).reshape(symmetric.shape[:-1])
    if definite:
        values = np.maximum(values, 0.0)
    vectors = np.stack([vectors for _, vectors in found]).reshape(symmetric.shape)
    return algebra.as_like(values, like), algebra.as_like(vectors, like)


_KINDS: dict[str, type[Block]] = {"kronecker": KroneckerBlock, "dense": DenseBlock, "diagonal": DiagonalBlock}


def pack(blocks: Sequence[Block]) -> tuple[dict[str, NDArray[Any]], str]:
    """The arrays of blocks by name, and in words what they belong to."""
    arrays, about = {}, []
    for number, block in enumerate(blocks):
        entry: dict[str, Any] = {"kind": next(name for name, kind in _KINDS.items() if type(block) is kind)}
        parts = {"values": block.values}
        if isinstance(block, KroneckerBlock):
            entry["layer"] = asdict(block.layer)
            parts |= {"q_in": block.q_in, "q_out": block.q_out}
            if block.factors is not None:
                parts |= {"a": block.factors[0], "b": block.factors[1]}
        else:
            entry |= {"name": block.name, "place": [block.slices[0].start, block.slices[0].stop]}
            if isinstance(block, DenseBlock):
                parts["vectors"] = block.vectors
        for name, part in parts.items():
            if part is not None:
                arrays[f"{number}.{name}"] = algebra.to_numpy(part)
        about.append(entry)
    return arrays, json.dumps(about)


def unpack(about: Sequence[dict[str, Any]], arrays: Mapping[str, Any], space: VectorSpace) -> list[Block]:
    """The inverse of :func:`pack`."""
    blocks: list[Block] = []
    for number, entry in enumerate(about):
        parts = {
            name.partition(".")[2]: space.asarray(array)
            for name, array in arrays.items()
            if name.partition(".")[0] == str(number)
        }
        if entry["kind"] == "kronecker":
            shapes = {key: tuple(entry["layer"][key]) for key in ("shape", "axes")}
            layer = Layer(**{**entry["layer"], **shapes})
            factors = (parts["a"], parts["b"]) if "a" in parts else None
            blocks.append(KroneckerBlock(layer, parts.get("q_in"), parts["q_out"], parts["values"], factors))
        elif entry["kind"] == "dense":
            blocks.append(
                DenseBlock(entry["name"], slice(*entry["place"]), parts["values"], parts["vectors"])
            )
        else:
            blocks.append(DiagonalBlock(entry["name"], slice(*entry["place"]), parts["values"]))
    return blocks


@algebra.fused()
def kronecker_values(of_inputs: Vector, of_outputs: Vector) -> Vector:
    """The products of the factors' eigenvalues, ``(groups, d_out, d_in)``."""
    return of_outputs[:, :, None] * of_inputs[:, None, :]


@algebra.fused()
def _rotated(matrices: Vector, q_out: Vector, q_in: Vector | None) -> Vector:
    matrices = _transposed(q_out) @ matrices
    return matrices if q_in is None else matrices @ q_in


@algebra.fused(fixed=(3,))
def _read(v: Vector, q_out: Vector, q_in: Vector | None, layer: Layer) -> Vector:
    """``Q_Bᵀ M Q_A`` of the matrices that a layer's entries are."""
    return _rotated(layer.read(v), q_out, q_in)


@algebra.fused(fixed=(4,))
def _parts(
    values: Vector, matrices: Vector, q_out: Vector, q_in: Vector | None, layer: Layer
) -> list[Vector]:
    """The entries of ``Q_B M Q_Aᵀ``, the matrices M times the values."""
    return layer.parts(_back(values, matrices, q_out, q_in))


@algebra.fused()
def _back(values: Vector, matrices: Vector, q_out: Vector, q_in: Vector | None) -> Vector:
    matrices = q_out @ (values * matrices)
    return matrices if q_in is None else matrices @ _transposed(q_in)


def _transposed(matrices: Vector) -> Vector:
    xp = array_api_compat.array_namespace(matrices)
    return xp.matrix_transpose(matrices)
