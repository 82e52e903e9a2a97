"""Influence scores as a small labelled array."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

from ihvp.arguments import check_integer
from ihvp.errors import InvalidOption
from ihvp.influence.top_k import Running, TopK, Which, check_which
from ihvp.packages import required

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Scores(NDArrayOperatorsMixin):
    """Influence scores with the names of their axes; an array in numpy's functions and in arithmetic.

    Attributes
    ----------
    values : array
        A numpy array; of a streamed run, the memory-mapped or zarr array that holds them.
    axes : tuple of str
        What each axis counts: ``("test", "train")``, ``("train",)``, ``("test", "train", "token")``, …
    residual : float
        The largest ``‖v − (H + λI) x‖ / ‖v‖`` of the inverse products that went in, recomputed.

    Examples
    --------
    >>> import numpy as np
    >>> scores = Scores(np.array([[0.1, -0.3, 0.2]]), ("test", "train"), residual=1e-7)
    >>> scores.shape, float(scores[0, 1])
    ((1, 3), -0.3)
    >>> scores.most_harmful(1)
    array([[1]])
    >>> (2 * scores).max()
    np.float64(0.4)
    """

    values: Any
    axes: tuple[str, ...]
    residual: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes."""
        return tuple(self.values.shape)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.axes)

    @property
    def dtype(self) -> np.dtype[Any]:
        """float64, or float32 where the parameters have that or less."""
        dtype: np.dtype[Any] = self.values.dtype
        return dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.values, dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if any(isinstance(value, Scores) for value in options.get("out", ())):
            return NotImplemented  # they do not change
        plain = (np.asarray(value) if isinstance(value, Scores) else value for value in inputs)
        return getattr(ufunc, method)(*plain, **options)

    def __getitem__(self, key: Any) -> Any:
        return self.values[key]

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return (self.values[i] for i in range(len(self)))

    def most_helpful(self, k: int) -> NDArray[np.intp]:
        """The numbers along the last axis with the highest scores, ``(…, k)``, the highest first.

        Without them the loss is predicted to rise most. Equal scores stand in the order of their numbers.
        """
        return self._ranked(-np.asarray(self.values), k)

    def most_harmful(self, k: int) -> NDArray[np.intp]:
        """The numbers along the last axis with the lowest scores, ``(…, k)``, the lowest first."""
        return self._ranked(np.asarray(self.values), k)

    def _ranked(self, keys: NDArray[Any], k: int) -> NDArray[np.intp]:
        check_k(k, keys.shape[-1], self.axes[-1])
        return np.argsort(keys, axis=-1, kind="stable")[..., :k]

    def top_k(self, k: int, which: Which = "both") -> TopK:
        """The k with the most influence on each test point, as :meth:`ihvp.Influence.top_k` finds them.

        Scores by token are an InvalidOption.
        """
        if self.ndim > 2:
            raise InvalidOption("the scores", self, "those of whole examples: take Influence.top_k")
        check_k(k, self.shape[-1], self.axes[-1])
        check_which(which)
        values = self.values if self.ndim == 2 else np.asarray(self.values)[None]
        (rows, columns), (height, width) = values.shape, getattr(values, "chunks", values.shape)
        running = Running(rows, k, which, self.dtype)
        for row, column in itertools.product(range(0, rows, height), range(0, columns, width)):
            tile = values[row : row + height, column : column + width]
            running.add(row, column, np.asarray(tile))
        return running.result(self.residual)

    def to_pandas(self) -> pandas.DataFrame | pandas.Series:
        """A ``DataFrame`` with a row for each test point, or a ``Series`` of one axis only; needs pandas.

        Of scores by token a row is that of a test point and a training example.
        """
        pandas = required("pandas", "Scores.to_pandas", "pip install pandas")
        labels = [
            pandas.RangeIndex(length, name=axis) for length, axis in zip(self.shape, self.axes, strict=True)
        ]
        values = np.asarray(self.values)
        if len(labels) == 1:
            return pandas.Series(values, index=labels[0], name="score")
        *rows, columns = labels
        index = rows[0] if len(rows) == 1 else pandas.MultiIndex.from_product(rows)
        return pandas.DataFrame(values.reshape(len(index), -1), index=index, columns=columns)

    def plot(self, ax: Any = None) -> Any:
        """Draw them, and return the matplotlib ``Axes``; see :func:`ihvp.plot.scores`."""
        from ihvp import plot

        return plot.scores(self, ax=ax)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{axis}: {length:,}" for length, axis in zip(self.shape, self.axes, strict=True))
        return f"Scores({sizes}; {self.dtype}, residual {self.residual:.1e})"


def check_k(k: Any, count: int, axis: str) -> None:
    """Refuse a ``k`` that is no number of examples."""
    expected = f"an integer from 1 to {count:,}, the number of {axis} examples"
    check_integer("k", k, 1, count, expected)
