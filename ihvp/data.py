"""The data an objective sums over: one batch in memory, or anything that can be iterated again and again."""

from __future__ import annotations

import copy
import math
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from numbers import Number
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.arguments import check_integer
from ihvp.backend import Batch
from ihvp.errors import (
    DataError,
    EmptyData,
    IhvpError,
    NotReiterable,
    ParameterError,
    UnequalBatches,
    describe,
    is_traced,
)

# So many random batches are taken at once, if they have so few entries together.
_DRAWN_BATCHES, _DRAWN_ENTRIES = 32, 1 << 20


@dataclass(frozen=True, eq=False)
class Piece:
    """Rows ``start:stop`` of a batch, which are cut out when they are asked for."""

    batch: Batch
    start: int
    stop: int
    rows: int  # how many the batch has

    @property
    def count(self) -> int:
        """The number of examples."""
        return self.stop - self.start

    def take(self) -> Batch:
        """The rows, or the batch itself where they are all of it."""
        return self.batch if self.count == self.rows else take_examples(self.batch, self.start, self.stop)

    def is_same(self, other: Piece) -> bool:
        """Whether both are the same rows of the same object."""
        return self.batch is other.batch and (self.start, self.stop) == (other.start, other.stop)


@dataclass(frozen=True)
class Batches:
    """Batches with their numbers of examples, the same ones at every iteration.

    An iterator is refused with NotReiterable, what cannot be iterated with DataError.

    >>> import numpy as np
    >>> batches = Batches((np.zeros((5, 2)), np.zeros(5)), batch_size=2)
    >>> [count for _, count in batches]
    [2, 2, 1]
    """

    # A tuple, a mapping or a single array is one batch, whose arrays share their leading dimension; None is
    # the one batch of a loss that needs no data. Anything else is iterated: a list, a DataLoader, a
    # tf.data.Dataset.
    data: Any
    batch_size: int | None = None  # cuts every batch into pieces of at most this many examples
    may_be_empty: bool = False  # whether they may have no example, as those of one process among several

    @classmethod
    def part(cls, data: Any, batch_size: int | None) -> Batches:
        """Those of one process among several, which has its own part of the data, or none of it."""
        batches = cls(data, batch_size, may_be_empty=True)
        sampler = getattr(data, "sampler", None)
        total, whole = getattr(sampler, "total_size", 0), getattr(sampler, "dataset", ())
        if total > len(whole):
            raise DataError(
                f"The sampler of the data, {describe(sampler)}, repeats {total - len(whole):,} of "
                f"{len(whole):,} examples, so that all processes have equally many; expected each example "
                "once. Give each process a loader over its own torch.utils.data.Subset, such as that of "
                "range(rank, len(dataset), processes): parts may be of different sizes."
            )
        return replace(batches, data=[]) if batches.in_memory and _has_no_rows(data) else batches

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1, expected="a positive integer, or None", none=True)
        if self.in_memory:
            return
        if isinstance(self.data, Iterator):
            raise NotReiterable(describe(self.data))
        if not hasattr(self.data, "__iter__"):
            advice = ""
            if hasattr(self.data, "__getitem__"):
                advice = "Wrap a data set of single examples in a loader. "
            elif callable(self.data):
                advice = (
                    "Of a function that yields batches pass list(function()), which can be iterated again. "
                )
            raise DataError(
                f"The data is {describe(self.data)}; expected one batch (a tuple or dict of arrays) or an "
                f"iterable of batches. {advice}".rstrip()
            )

    @property
    def in_memory(self) -> bool:
        """Whether the data is one batch of arrays."""
        return self.data is None or isinstance(self.data, (tuple, Mapping)) or is_array(self.data)

    @property
    def lasting(self) -> bool:
        """Whether every pass gives the same arrays: those of one batch in memory, or of a list of batches."""
        return self.in_memory or isinstance(self.data, list)

    def __iter__(self) -> Iterator[tuple[Batch, int]]:
        """Yields ``(batch, number of examples)``."""
        for piece in self.pieces():
            yield piece.take(), piece.count

    def pieces(self) -> Iterator[Piece]:
        """Yields the same batches, not yet cut out of the data.

        EmptyData where there is no batch, or one without examples; UnequalBatches where one has another
        structure than the first, or arrays of different lengths.
        """
        first: str | None = None
        for index, batch in enumerate(self._read()):
            if self.may_be_empty and _has_no_rows(batch):
                continue
            structure = describe_structure(batch)
            if first is None:
                first = structure
            elif structure != first:
                raise UnequalBatches(
                    f"Batch {index} is {structure}; expected the structure of batch 0: {first}. "
                    "Make every batch the same tuple or dict of arrays."
                )
            count = count_examples(batch, index)
            size = self.batch_size or count
            for start in range(0, count, size):
                yield Piece(batch, start, min(start + size, count), count)
        if first is None and not self.may_be_empty:
            raise EmptyData("The data holds no batch; expected at least one.")

    def _read(self) -> Iterator[Batch]:
        if self.in_memory:
            yield self.data
            return
        try:
            yield from self.data
        except IhvpError:
            raise
        except Exception as error:
            raise DataError(
                f"The data, {describe(self.data)}, gave no batch but {type(error).__name__}: {error}. "
                "Expected a list of batches, or a loader whose examples can be read and stacked."
            ) from error


@dataclass(frozen=True)
class Examples:
    """All the examples of some batches in memory, to be drawn by their row numbers.

    >>> import numpy as np
    >>> examples = Examples.of(Batches([np.array([0.0, 1.0]), np.array([2.0])]))
    >>> examples.rows(np.array([2, 0, 2]))
    array([2., 0., 2.])
    """

    batch: Batch  # every example, in arrays that take an array of row numbers
    count: int  # N, the number of examples

    @classmethod
    def of(cls, batches: Batches) -> Examples:
        """The examples of ``batches``, read once: arrays that are in memory already are not copied.

        A DataError says that batches cannot be joined: their examples differ in shape, or an entry differs
        that is no array.
        """
        parts = [batches.data] if batches.in_memory else [batch for batch, _ in batches]
        if not parts:  # of one process among several
            return cls(None, 0)
        count = sum(count_examples(part, index) for index, part in enumerate(parts))
        return cls(map_leaves(_joined, parts[0], *parts[1:]), count)

    def rows(self, numbers: NDArray[np.intp]) -> Batch:
        """The examples of these numbers, in this order, in the structure of a batch."""
        return map_leaves(lambda leaf: _rows(leaf, numbers), self.batch)

    def draws(self, size: int) -> Callable[[np.random.Generator], Batch]:
        """A function that draws ``size`` examples, with replacement, by a generator.

        It takes the rows of several calls at once, which costs little more than those of one; what is left
        of them when another generator comes is dropped.
        """
        here = replace(self, batch=map_leaves(_at_hand, self.batch))
        arrays = [array for _, array in arrays_of(here.batch)]
        entries = size * sum(math.prod(array.shape[1:]) for array in arrays)
        count = max(1, min(_DRAWN_BATCHES, _DRAWN_ENTRIES // max(1, entries)))
        if any(map(array_api_compat.is_jax_array, arrays)):  # XLA compiles a program for each slice
            return lambda generator: here.rows(generator.integers(0, here.count, size=size))
        last: np.random.Generator | None = None
        left: list[Batch] = []

        def draw(generator: np.random.Generator) -> Batch:
            nonlocal last, left
            if not left or generator is not last:
                rows = here.rows(generator.integers(0, here.count, size=count * size))
                parts = [slice(i * size, (i + 1) * size) for i in reversed(range(count))]
                left = [
                    map_leaves(lambda leaf, at=at: leaf[at] if is_array(leaf) else leaf, rows) for at in parts
                ]
                last = generator
            return left.pop()

        return draw


def count_examples(batch: Batch, index: int = 0) -> int:
    """The leading dimension that the arrays of ``batch`` share; 1 for None."""
    if batch is None:
        return 1
    lengths = {path: int(leaf.shape[0]) for path, leaf in arrays_of(batch)}
    if not lengths:
        raise DataError(
            f"Batch {index} is {describe_structure(batch)} and holds no array with a leading dimension; "
            "expected a tuple or dict of arrays, one row an example."
        )
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{path or 'batch'}: {length}" for path, length in lengths.items())
        raise UnequalBatches(
            f"The arrays of batch {index} have different numbers of rows ({listed}); expected one row an "
            "example in each."
        )
    count = next(iter(lengths.values()))
    if count == 0:
        raise EmptyData(f"Batch {index} holds no example; leave empty batches out.")
    return count


def _has_no_rows(batch: Batch) -> bool:
    return {int(leaf.shape[0]) for _, leaf in arrays_of(batch)} == {0}


def as_data(batch: Batch) -> Any:
    """A batch in the form of data: a list of arrays, as loaders make them, would be one of batches."""
    return [batch] if isinstance(batch, list) else batch


def take_examples(batch: Batch, start: int, stop: int) -> Batch:
    """Rows ``start:stop`` of every array in ``batch``, in the same structure."""
    return map_leaves(
        lambda leaf: algebra.without_explicit_axes(leaf)[start:stop] if is_array(leaf) else leaf, batch
    )


def describe_structure(batch: Batch) -> str:
    """The nesting of a batch as text; equal texts mean that two batches fit together.

    >>> import numpy as np
    >>> describe_structure({"x": np.zeros((2, 3)), "y": [np.zeros(2)]})
    "{'x': 2-d array, 'y': [1-d array]}"
    """
    if isinstance(batch, Mapping):
        items = ", ".join(f"{key!r}: {describe_structure(batch[key])}" for key in sorted(batch, key=str))
        return "{" + items + "}"
    if isinstance(batch, (list, tuple)):
        return "[" + ", ".join(describe_structure(value) for value in batch) + "]"
    if is_array(batch):
        return f"{len(batch.shape)}-d array"
    return describe(batch)


def arrays_of(batch: Batch, path: str = "") -> Iterator[tuple[str, Any]]:
    """The arrays of a batch that have a leading dimension, each with its path below ``path``."""
    if isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from arrays_of(value, f"{path}[{key!r}]")
    elif isinstance(batch, (list, tuple)):
        for index, value in enumerate(batch):
            yield from arrays_of(value, f"{path}[{index}]")
    elif is_array(batch):
        yield path, batch


def map_leaves(function: Callable[..., Any], batch: Batch, *others: Batch) -> Batch:
    """``batch`` with each leaf replaced by the function of it and of its namesakes in ``others``."""
    if isinstance(batch, Mapping):
        mapped = {
            key: map_leaves(function, value, *(other[key] for other in others))
            for key, value in batch.items()
        }
        if not isinstance(batch, (dict, UserDict)):
            return mapped
        # A copy keeps the class: tokenizers return mappings whose models read them by attribute. The copy of
        # any other mapping may share its entries with the original.
        piece = copy.copy(batch)
        for key, value in mapped.items():
            piece[key] = value
        return piece
    if isinstance(batch, (tuple, list)):
        items = [map_leaves(function, *entries) for entries in zip(batch, *others, strict=True)]
        if isinstance(batch, list):
            return items
        return type(batch)(*items) if hasattr(batch, "_fields") else tuple(items)
    return function(batch, *others)


def ordered_like(tree: Any, like: Any, what: str = "parameters") -> Any:
    """``tree``, the keys of its mappings in the order of those of ``like``: the order of a flat vector.

    ParameterError where the keys, the lengths or the nesting differ.
    """
    return tree if _is_ordered_like(tree, like, what) else map_leaves(lambda _, leaf: leaf, like, tree)


def _is_ordered_like(tree: Any, like: Any, what: str) -> bool:
    kinds = _kind(tree), _kind(like)
    if None in kinds:  # a model or another structure of a framework, which tells its order itself
        return True
    if kinds == (Mapping, Mapping) and tree.keys() == like.keys():
        inside = [_is_ordered_like(tree[key], value, what) for key, value in like.items()]
        return all(inside) and list(tree) == list(like)
    if kinds == (list, list) and len(tree) == len(like):
        inside = [_is_ordered_like(*pair, what) for pair in zip(tree, like, strict=True)]
        return all(inside)
    if kinds == (float, float) and _shape(tree) == _shape(like):
        return True
    found, expected = (describe(x) if _kind(x) is float else describe_structure(x) for x in (tree, like))
    raise ParameterError(
        f"Found {found:.200} among the {what}; expected {expected:.200}, as in those from the start."
    )


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(getattr(leaf, "shape", ()))


def _kind(tree: Any) -> type | None:
    if is_array(tree, scalar=True) or isinstance(tree, Number):
        return float
    if isinstance(tree, Mapping):
        return Mapping
    return list if isinstance(tree, (list, tuple)) else None


def _joined(first: Any, *others: Any) -> Any:
    """The rows of all arrays in one; what is no array must be the same in all batches."""
    if not is_array(first):
        if any(other is not first and other != first for other in others):
            raise DataError(
                f"Batches hold different values of an entry that is {describe(first)}; expected arrays, one "
                "row an example, or the same value in every batch, to draw examples from them."
            )
        return first
    # Arrays outside the Array API (tensors of TensorFlow, data frames, files) take slices, but not an array
    # of row numbers.
    leaves = [
        algebra.without_explicit_axes(leaf) if array_api_compat.is_array_api_obj(leaf) else np.asarray(leaf)
        for leaf in (first, *others)
    ]
    shapes = {tuple(leaf.shape[1:]) for leaf in leaves}
    if len(shapes) > 1:
        raise DataError(
            f"The examples of different batches have the shapes {sorted(shapes)}; expected one shape, to "
            "draw examples from all of them. Pad them to one shape."
        )
    return leaves[0] if not others else array_api_compat.array_namespace(*leaves).concat(leaves, axis=0)


def _at_hand(leaf: Any) -> Any:
    """An array of JAX that is in the host's memory as one of numpy's, whose rows cost less to take."""
    plain = array_api_compat.is_jax_array(leaf) and isinstance(leaf.dtype, np.dtype) and not is_traced(leaf)
    if plain and getattr(array_api_compat.device(leaf), "platform", None) == "cpu":
        return algebra.to_numpy(leaf)
    return leaf


def _rows(leaf: Any, numbers: NDArray[np.intp]) -> Any:
    if not is_array(leaf):
        return leaf
    return leaf[numbers] if isinstance(leaf, np.ndarray) else algebra.take(leaf, numbers, axis=0)


def is_array(value: Any, *, scalar: bool = False) -> bool:
    """Whether this is an array with a leading dimension, or where ``scalar`` with none."""
    shape = getattr(value, "shape", None)
    return shape is not None and not callable(shape) and len(shape) >= (not scalar)
