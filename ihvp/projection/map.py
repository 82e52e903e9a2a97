"""Random maps of flat vectors of parameters, made piece by piece from a seed."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.errors import InvalidOption
from ihvp.projection.projection import Projection

# A piece of a matrix with independent entries has so many of them (16 MiB in float32).
_ENTRIES = 1 << 22
# So many rows pass through all pieces at once.
_ROWS = 128


class RandomMap(Protocol):
    """R of a projection, ``(dim, P)``."""

    dim: int  # how many numbers it gives

    @property
    def parts(self) -> Mapping[str, slice]:
        """The numbers of each layer, where they are kept apart."""

    def project(self, rows: Vector) -> Vector:
        """``R x`` of each row x, ``(b, P)``, as rows ``(b, dim)``."""

    def pull_back(self, rows: Vector) -> Vector:
        """``Rᵀ y`` of each row y, ``(b, dim)``, as rows ``(b, P)``."""


def check_dim(projection: Projection, size: int) -> None:
    """Refuse more numbers than a gradient has."""
    if projection.dim > size:
        raise InvalidOption(
            "dim", projection.dim, f"at most {size:,}, the number of parameters: fewer numbers are the point"
        )


class DenseMap:
    """Independent entries ±1/√dim, or normal ones with that deviation."""

    parts: Mapping[str, slice] = {}

    def __init__(self, projection: Projection, size: int) -> None:
        check_dim(projection, size)
        self.dim, self._projection, self._size = projection.dim, projection, size

    def project(self, rows: Vector) -> Vector:
        parts = (
            rows[:, start : start + len(piece)] @ algebra.as_like(piece, rows)
            for start, piece in self._pieces()
        )
        return functools.reduce(operator.add, parts)

    def pull_back(self, rows: Vector) -> Vector:
        xp = array_api_compat.array_namespace(rows)
        parts = [rows @ algebra.as_like(piece, rows).T for _, piece in self._pieces()]
        return xp.concat(parts, axis=1)

    def _pieces(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The first parameter of a piece, and the columns of R from it on, as rows."""
        step = max(1, _ENTRIES // self.dim)
        for number, start in enumerate(range(0, self._size, step)):
            shape = min(step, self._size - start), self.dim
            generator = np.random.default_rng([self._projection.seed, number])
            if self._projection.kind == "gaussian":
                piece = generator.standard_normal(shape, dtype=np.float32)
            else:
                bits = np.unpackbits(np.frombuffer(generator.bytes(-(-shape[0] * shape[1] // 8)), np.uint8))
                piece = (2 * bits[: shape[0] * shape[1]].reshape(shape).view(np.int8) - 1).astype(np.float32)
            yield start, piece / np.float32(self.dim**0.5)


class SparseMap:
    """One ±1 in each column, at a place that is equally likely anywhere.

    Each run of ``dim`` parameters is signed, shifted around by a random number of places, and added up: two
    parameters of one run never fall together, and two of different runs do with probability 1/dim. That is
    all that the variance asks for, and only neighbours in memory are read and written together.
    """

    parts: Mapping[str, slice] = {}

    def __init__(self, projection: Projection, size: int) -> None:
        check_dim(projection, size)
        generator = np.random.default_rng(projection.seed)
        self.dim, self._size = projection.dim, size
        self._shifts = generator.integers(0, self.dim, -(-size // self.dim))
        self._signs = 2 * generator.integers(0, 2, size, dtype=np.int8) - 1

    def project(self, rows: Vector) -> Vector:
        if isinstance(rows, np.ndarray) or array_api_compat.is_torch_array(rows):
            # Few rows at once, which stay in a processor's cache until all runs are added.
            added = self._in_numpy if isinstance(rows, np.ndarray) else self._in_torch
            starts = range(0, max(1, len(rows)), _ROWS)
            xp = array_api_compat.array_namespace(rows)
            return xp.concat([added(rows[start : start + _ROWS]) for start in starts], axis=0)
        total: Any = None
        for run, shift in self._runs():
            part = rows[:, run] * algebra.as_like(self._signs[run], rows)
            xp, short = array_api_compat.array_namespace(part), self.dim - part.shape[1]
            if short:
                zeros = xp.zeros((part.shape[0], short), dtype=part.dtype, device=algebra.device(part))
                part = xp.concat([part, zeros], axis=1)
            part = xp.roll(part, shift, axis=1)
            total = part if total is None else total + part
        return total

    def _in_torch(self, rows: Vector) -> Vector:
        xp = array_api_compat.array_namespace(rows)
        total = xp.zeros((rows.shape[0], self.dim), dtype=rows.dtype, device=algebra.device(rows))
        for run, shift in self._runs():
            width, part, signs = run.stop - run.start, rows[:, run], algebra.as_like(self._signs[run], rows)
            cut = min(width, self.dim - shift)
            # Each in one pass, where numpy writes the products first.
            algebra.axpy(total[:, shift : shift + cut], signs[:cut], part[:, :cut])
            algebra.axpy(total[:, : width - cut], signs[cut:], part[:, cut:])
        return total

    def _in_numpy(self, rows: NDArray[Any]) -> NDArray[Any]:
        total = np.zeros((len(rows), self.dim), rows.dtype)
        signed = np.empty_like(total)
        for run, shift in self._runs():
            width = run.stop - run.start
            cut, part = min(width, self.dim - shift), signed[:, :width]
            np.multiply(rows[:, run], self._signs[run].astype(rows.dtype), out=part)
            total[:, shift : shift + cut] += part[:, :cut]
            total[:, : width - cut] += part[:, cut:]
        return total

    def pull_back(self, rows: Vector) -> Vector:
        xp = array_api_compat.array_namespace(rows)
        parts = [
            xp.roll(rows, -int(shift), axis=1)[:, : run.stop - run.start]
            * algebra.as_like(self._signs[run], rows)
            for run, shift in self._runs()
        ]
        return xp.concat(parts, axis=1)

    def _runs(self) -> Iterator[tuple[slice, int]]:
        for number, shift in enumerate(self._shifts):
            start = number * self.dim
            yield slice(start, min(start + self.dim, self._size)), int(shift)
