"""Where the entries of a variable lie that is part of a parameter, or part of what a layer gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class View:
    """Numbers of a vector, in the shape of a variable."""

    array: NDArray[np.int8]  # a view of vector: where it begins and its strides tell which numbers these are
    # As many bytes as the vector has numbers. They are neither read nor written, so they cost no memory.
    vector: NDArray[np.int8]
    # For each loop around the variable its iterations, and how many numbers further it begins in the next.
    loops: tuple[tuple[int, int], ...] = ()
    # Where in the program the layer is that gives the vector; empty for the vector of parameters.
    layer: tuple[int, ...] = ()

    @property
    def start(self) -> int:
        """The place of the first number."""
        return int(self.array.ctypes.data - self.vector.ctypes.data)

    @property
    def interval(self) -> tuple[int, int]:
        """The place of the first number and that behind the last, over all iterations."""
        steps = (*self.loops, *zip(self.array.shape, self.array.strides, strict=True))
        return self.start, self.start + 1 + sum((size - 1) * stride for size, stride in steps)

    def at(self, iteration: tuple[int | None, ...]) -> int:
        """The place of the first number in an iteration of each loop, or in all of one where None stands."""
        return self.start + sum((i or 0) * step for i, (_, step) in zip(iteration, self.loops, strict=True))

    def through(self, name: str, params: dict[str, Any]) -> View | None:
        """What an operation makes of it that only lays out anew; None if it is none, or moves numbers."""
        if name not in _LAYOUT or not jnp.issubdtype(params.get("new_dtype", float), jnp.floating):
            return None
        array = _LAYOUT[name](self.array, params)
        return replace(self, array=array) if np.may_share_memory(array, self.vector) else None

    def broadcast(self, shape: tuple[int, ...]) -> View:
        """It along the axes of a sum."""
        return replace(self, array=np.broadcast_to(self.array, shape))

    def split(self, params: dict[str, Any]) -> list[View]:
        """The parts that the operation ``split`` gives."""
        parts = np.split(self.array, np.cumsum(params["sizes"])[:-1], params["axis"])
        return [replace(self, array=part) for part in parts]

    def in_loop(self, length: int, over: bool) -> View:
        """It within a loop: the same in each iteration, or a slice of the first axis in each ``over`` it."""
        array, step = (self.array[0], self.array.strides[0]) if over else (self.array, 0)
        return replace(self, array=array, loops=(*self.loops, (length, step)))

    def stored(self, order: Sequence[int], rows: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """The shape in which its numbers lie one behind another, and the permutation that gives a matrix.

        The first ``rows`` axes of the array in a given order are those of the matrix's rows, the others those
        of its columns. What is one axis in both counts as one, so that equal layouts look alike.
        None if there are other numbers in between.
        """
        steps = [(self.array.shape[axis], self.array.strides[axis]) for axis in order]
        axes = _merged(steps[:rows]) + _merged(steps[rows:]) or [(1, 1)]
        descending = sorted(axes, key=lambda step: -step[1])
        shape = tuple(size for size, _ in descending)
        if any(stride != math.prod(shape[i + 1 :]) for i, (_, stride) in enumerate(descending)):
            return None
        return shape, tuple(map(descending.index, axes))


def _merged(steps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Axes, as sizes and strides, with neighbours that are one axis cut in two put together again."""
    merged: list[tuple[int, int]] = []
    for size, stride in steps:
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        elif size > 1:
            merged.append((size, stride))
    return merged


def _same(array: NDArray[np.int8], params: dict[str, Any]) -> NDArray[np.int8]:
    return array


def _broadcast(array: NDArray[np.int8], params: dict[str, Any]) -> NDArray[np.int8]:
    shape = np.ones(len(params["shape"]), int)
    shape[list(params["broadcast_dimensions"])] = array.shape
    return np.broadcast_to(array.reshape(shape), params["shape"])


def _slice(array: NDArray[np.int8], params: dict[str, Any]) -> NDArray[np.int8]:
    strides = params["strides"] or [1] * array.ndim
    return array[tuple(map(slice, params["start_indices"], params["limit_indices"], strides))]


_LAYOUT: dict[str, Callable[[NDArray[np.int8], dict[str, Any]], NDArray[np.int8]]] = {
    "broadcast_in_dim": _broadcast,
    "convert_element_type": _same,
    "copy": _same,
    "copy_p": _same,
    "name": _same,
    "reshape": lambda array, params: array.reshape(params["new_sizes"]),
    "sharding_constraint": _same,
    "slice": _slice,
    "squeeze": lambda array, params: np.squeeze(array, params["dimensions"]),
    "transpose": lambda array, params: array.transpose(params["permutation"]),
}
