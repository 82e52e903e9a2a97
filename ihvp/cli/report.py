"""The page of ``ihvp influence --report``: what of the data is shown on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp import files
from ihvp.algebra import as_numpy
from ihvp.arguments import naming
from ihvp.backend import Batch
from ihvp.data import Batches, Examples, arrays_of, as_data
from ihvp.errors import DataError, FunctionFailed, InvalidOption, describe
from ihvp.influence import TopK
from ihvp.influence.products import InverseProducts
from ihvp.packages import required
from ihvp.report import count, page


@dataclass(frozen=True)
class Report:
    """A page of rankings of the test points, with the inputs and labels that functions find in a batch."""

    path: Path
    training: Batches
    test_data: Any
    inputs: Callable[[Batch], Any] | None  # by default, the first array of a batch
    labels: Callable[[Batch], Any] | None  # by default, its first vector of integers after that

    def check(self) -> None:
        """Make a page of the first example, so that what cannot be shown is told before any work."""
        tests = 1
        if not isinstance(self.test_data, InverseProducts):
            tests = sum(piece.count for piece in Batches(self.test_data).pieces())
        self._page([TopK(np.zeros((tests, 1), np.int64), np.ones((tests, 1)), "helpful", 0.0)])

    def write(self, rankings: Sequence[TopK]) -> None:
        """Write the page of these rankings of the same test points."""
        text = self._page(rankings)
        files.replace(self.path, lambda file: file.write(text.encode()))

    def _page(self, rankings: Sequence[TopK]) -> str:
        numbers = np.unique(np.concatenate([each.indices.ravel() for each in rankings]))
        inputs, labels = self._shown(self.training, numbers)
        queries = query_labels = None
        if not isinstance(self.test_data, InverseProducts):
            queries, query_labels = self._shown(Batches(self.test_data), np.arange(len(rankings[0].indices)))
        return page(
            rankings, inputs, queries=queries, labels=labels, query_labels=query_labels, numbers=numbers
        )

    def _shown(self, batches: Batches, numbers: NDArray[np.int64]) -> tuple[Any, Any]:
        """The inputs and the labels of the examples of these numbers, in ascending order."""
        inputs, labels, first = [], [], 0
        for piece in batches.pieces():
            own = numbers[(numbers >= first) & (numbers < first + piece.count)]
            if len(own):
                rows = Examples.of(Batches(as_data(piece.batch))).rows(own - first + piece.start)
                inputs.append(_found("--inputs", self.inputs or _first_array, rows, len(own)))
                labels.append(_found("--labels", self.labels or _integers, rows, len(own)))
            first += piece.count
        return _joined(inputs), None if any(each is None for each in labels) else _joined(labels)


def _found(option: str, function: Callable[[Batch], Any], rows: Batch, expected: int) -> Any:
    with naming(FunctionFailed, f"The function of {option}"):
        found = function(rows)
    if found is not None and count(option, found) != expected:
        raise InvalidOption(
            f"What the function of {option} gave", found, f"one for each of {expected} examples"
        )
    return found


def _first_array(batch: Batch) -> Any:
    for _, array in arrays_of(batch):
        found = as_numpy(array)
        return found[:, None] if found.ndim == 1 else found
    raise DataError(
        f"The data is {describe(batch)}, without an array to show; expected inputs. Name a function of a "
        "batch that gives them: --inputs module:name."
    )


def _integers(batch: Batch) -> Any:
    found = [as_numpy(array) for _, array in arrays_of(batch)][1:]
    return next((each for each in found if each.ndim == 1 and each.dtype.kind in "iub"), None)


def _joined(parts: Sequence[Any]) -> Any:
    """What functions gave for several batches, in one."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, list | tuple):
        return [each for part in parts for each in part]
    if isinstance(first, Mapping):
        return {key: _joined([part[key] for part in parts]) for key in first}
    if hasattr(first, "iloc"):
        return required("pandas", "--report", "pip install pandas").concat(parts)
    return Examples.of(Batches([(part,) for part in parts])).batch[0]
