"""Rows of a table, as names and values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ihvp.algebra import as_numpy
from ihvp.arguments import shape_of
from ihvp.errors import InvalidOption
from ihvp.report.markup import escaped


class Rows:
    """Rows of a ``DataFrame``, of a mapping of columns, or of a matrix."""

    below = True

    def __init__(self, inputs: Any, rows: Sequence[int], queries: Any, feature_names: Any) -> None:
        self._names, self._row = _reader("inputs", inputs, feature_names)
        if queries is not None:
            names, self._query = _reader("queries", queries, feature_names)
            if names != self._names:
                raise InvalidOption(
                    "queries", queries, f"the columns of the inputs: {', '.join(self._names)}"
                )

    def examples(self, query: int, rows: Sequence[int], names: Sequence[str]) -> list[str]:
        return [self._list(self._row(row), name) for row, name in zip(rows, names, strict=True)]

    def query(self, query: int, name: str) -> str:
        return self._list(self._query(query), name)

    def _list(self, values: Iterable[Any], name: str) -> str:
        pairs = "".join(
            f"<div><dt>{escaped(key)}</dt><dd>{escaped(_short(value))}</dd></div>"
            for key, value in zip(self._names, values, strict=True)
        )
        return f'<dl tabindex="0" aria-label="{escaped(name)}">{pairs}</dl>'


def is_frame(inputs: Any) -> bool:
    """Whether this is a ``DataFrame``."""
    return hasattr(inputs, "columns") and hasattr(inputs, "iat")


def _reader(option: str, inputs: Any, names: Any) -> tuple[list[str], Callable[[int], Iterable[Any]]]:
    """The names of the columns, and what gives the values of a row."""
    if is_frame(inputs):
        width = range(len(inputs.columns))
        return list(map(str, inputs.columns)), lambda row: [inputs.iat[row, column] for column in width]
    if isinstance(inputs, Mapping):
        columns = [each if isinstance(each, list | tuple) else as_numpy(each) for each in inputs.values()]
        if len({len(column) for column in columns}) > 1:
            raise InvalidOption(option, inputs, "columns of equal length")
        return list(map(str, inputs)), lambda row: [column[row] for column in columns]
    shape = shape_of(inputs) or np.shape(inputs)
    if len(shape) != 2 or (names is not None and len(names) != shape[1]):
        raise InvalidOption(
            option if len(shape) != 2 else "feature_names",
            inputs if len(shape) != 2 else names,
            "a DataFrame, a dict of columns, or a matrix (N, features) with a name for each feature",
        )
    return list(map(str, range(shape[1]) if names is None else names)), lambda row: as_numpy(inputs[row])


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float | np.floating) else value
