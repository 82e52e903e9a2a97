"""The highest scores of each test point, kept while the scores stream by."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ihvp.arguments import check_choice, check_instance
from ihvp.files import replace
from ihvp.packages import required
from ihvp.processes import Processes

if TYPE_CHECKING:
    import pandas

Which = Literal["helpful", "harmful", "both"]


@dataclass(frozen=True, eq=False)
class TopK:
    """The training examples with the most influence on each test point, the first the most.

    Attributes
    ----------
    indices : ndarray (n_test, k)
        Their numbers in the order of the training data.
    scores : ndarray (n_test, k)
    which : {"helpful", "harmful", "both"}
        Ranked by the score, by its negative, or by its magnitude.
    residual : float
        The largest recomputed residual of the inverse products that went in.

    Examples
    --------
    >>> import numpy as np
    >>> top = TopK(np.array([[2, 0]]), np.array([[0.5, 0.25]]), "helpful", 1e-7)
    >>> for index, score in zip(top.indices[0], top.scores[0]):
    ...     print(index, score)
    2 0.5
    0 0.25
    """

    indices: NDArray[np.int64]
    scores: NDArray[Any]
    which: Which
    residual: float

    @property
    def values(self) -> NDArray[Any]:
        """The scores, ``(n_test, k)``, by the name that they have in :class:`~ihvp.influence.Scores`."""
        return self.scores

    @property
    def table(self) -> dict[str, NDArray[Any]]:
        """Test point, rank, training example and score of each entry, by name."""
        tests, ranks = np.indices(self.indices.shape).reshape(2, -1)
        return {"test": tests, "rank": ranks + 1, "train": self.indices.ravel(), "score": self.scores.ravel()}

    def to_pandas(self) -> pandas.DataFrame:
        """A ``DataFrame`` with the columns test, rank, train and score; needs pandas."""
        pandas = required("pandas", "TopK.to_pandas", "pip install pandas")
        return pandas.DataFrame(self.table)

    def plot(self, ax: Any = None, test: int = 0) -> Any:
        """Draw those of one test point, and return the matplotlib ``Axes``; see :func:`ihvp.plot.top_k`."""
        from ihvp import plot

        return plot.top_k(self, test=test, ax=ax)

    def to_html(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        inputs: Any,
        queries: Any = None,
        labels: Any = None,
        query_labels: Any = None,
        other: TopK | None = None,
        kind: Literal["image", "text", "table"] | None = None,
        feature_names: Sequence[str] | None = None,
        token_scores: Any = None,
        title: str = "Influence of training examples",
    ) -> str:
        """A page with each query and the training examples that helped and harmed it most, in one file.

        It is read in a browser, and needs no network. Lists are sorted by score, number or label, and
        filtered by label and by words. Only the examples that appear are in it, once for each list. Of
        ``which="both"`` the positive scores are listed apart from the negative ones.

        Parameters
        ----------
        path : path, optional
            Where the page is written to.
        inputs : array_like, sequence, DataFrame or dict
            The training inputs, in the order of the training data. Images ``(N, height, width)``, or with
            1, 3 or 4 channels before or after; texts, or lists of tokens; the rows of a ``DataFrame``, of
            a dict of columns, or of a matrix ``(N, features)``.
        queries : optional
            The inputs of the test points, in the same form.
        labels, query_labels : sequence, optional
            What each training example and each test point is labelled.
        other : TopK, optional
            A further ranking of the same test points, as the harmful examples beside the helpful ones.
        kind : {"image", "text", "table"}, optional
            What the inputs are; by default what they look like.
        feature_names : sequence of str, optional
            Those of the columns of a matrix.
        token_scores : sequence or callable, optional
            The scores that shade the tokens of each training input; or ``token_scores(test, train)``, those
            of one training input beside one test point.
        title : str

        Returns
        -------
        str
            The page.

        Raises
        ------
        InvalidOption
            The inputs are of no known form, not finite, or not as many as there are examples.
        NotImages
            Inputs that are told to be images have another shape.

        Examples
        --------
        >>> import numpy as np
        >>> top = TopK(np.array([[2, 0]]), np.array([[0.5, -0.25]]), "both", 1e-7)
        >>> page = top.to_html(inputs=["a cat", "two cats", "a <b>dog</b>"], labels=[0, 0, 1])
        >>> "a &lt;b&gt;dog&lt;/b&gt;" in page, "two cats" in page
        (True, False)
        """
        from ihvp.report import check_place, page

        place = None if path is None else check_place("path", path)
        if other is not None:
            check_instance("other", other, TopK, "a TopK of the same test points, or None")
        found = page(
            [self] if other is None else [self, other],
            inputs,
            queries=queries,
            labels=labels,
            query_labels=query_labels,
            kind=kind,
            feature_names=feature_names,
            token_scores=token_scores,
            title=title,
        )
        if place is not None:
            replace(place, lambda file: file.write(found.encode()))
        return found

    def __repr__(self) -> str:
        tests, k = self.indices.shape
        return f"TopK({k} most {self.which}, test: {tests:,}; residual {self.residual:.1e})"


class Running:
    """The best k of each row, of scores that come in tiles."""

    def __init__(self, rows: int, k: int, which: Which, dtype: np.dtype[Any]) -> None:
        self._k, self._which = k, which
        self._indices: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * rows
        self._scores: list[NDArray[Any]] = [np.empty(0, dtype)] * rows

    def add(self, first_row: int, first_column: int, tile: NDArray[Any]) -> None:
        """Take in the scores of the rows from ``first_row`` on and the columns from ``first_column`` on."""
        numbers = np.arange(first_column, first_column + tile.shape[1])
        for row, values in enumerate(tile, first_row):
            chosen: Any = slice(None)
            if len(self._scores[row]) == self._k:
                # Of most tiles few can be among the best; equal ones lose to earlier numbers, or win.
                chosen = np.flatnonzero(self._keys(values) <= self._keys(self._scores[row]).max())
                if not chosen.size:
                    continue
            scores = np.concatenate([self._scores[row], values[chosen]])
            indices = np.concatenate([self._indices[row], numbers[chosen]])
            best = self._best(scores)
            self._scores[row], self._indices[row] = scores[best], indices[best]

    def among(self, processes: Processes, counts: NDArray[np.int64]) -> Running:
        """The best of all processes, of which each has ``counts`` columns, after those of lower ranks."""
        if processes.count == 1:
            return self
        widths = np.minimum(counts, self._k)
        own = slice(*(int(widths[: processes.rank + i].sum()) for i in (0, 1)))
        found = Running(len(self._scores), self._k, self._which, self._scores[0].dtype)
        sides: list[NDArray[Any]] = []
        for side in (np.stack(self._scores), np.stack(self._indices)):
            wide = np.zeros((len(side), int(widths.sum())), side.dtype)
            wide[:, own] = side
            sides.append(processes.join(wide))
        for row, (scores, indices) in enumerate(zip(*sides, strict=True)):
            best = self._best(scores)
            found._scores[row], found._indices[row] = scores[best], indices[best]
        return found

    def result(self, residual: float) -> TopK:
        """What is best of all that was added, of inverse products with this residual."""
        return TopK(np.stack(self._indices), np.stack(self._scores), self._which, residual)

    def _keys(self, scores: NDArray[Any]) -> NDArray[Any]:
        if self._which == "harmful":
            return scores
        return -scores if self._which == "helpful" else -np.abs(scores)

    def _best(self, scores: NDArray[Any]) -> NDArray[np.intp]:
        keys = self._keys(scores)
        if len(keys) <= self._k:
            return np.argsort(keys, kind="stable")
        # All that equal the k-th stay until the stable sort: of equal scores the earlier number wins,
        # however the columns are cut into tiles.
        threshold = np.partition(keys, self._k - 1)[self._k - 1]
        candidates = np.flatnonzero(keys <= threshold)
        return candidates[np.argsort(keys[candidates], kind="stable")][: self._k]


def check_which(which: Any) -> None:
    """Refuse another name of a ranking."""
    check_choice("which", which, get_args(Which))
