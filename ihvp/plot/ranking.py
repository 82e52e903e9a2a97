"""Scores in order, and the most influential examples of one test point."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp.errors import InvalidOption, NothingToDraw
from ihvp.plot.style import HARMS, HELPS, NEUTRAL, axes

_SCORE = "predicted rise of the loss without it"


def scores(influence_scores: Any, ax: Any = None) -> Any:
    """Scores in order, the most helpful first: a line for each test point.

    Parameters
    ----------
    influence_scores : ihvp.influence.Scores
    ax : matplotlib.axes.Axes, optional

    Raises
    ------
    NothingToDraw
        There are no scores, or they are those of tokens.

    Examples
    --------
    >>> import numpy as np
    >>> from ihvp import plot
    >>> from ihvp.influence import Scores
    >>> ax = plot.scores(Scores(np.array([[0.1, -0.3, 0.2]]), ("test", "train"), residual=0.0))
    >>> ax.lines[0].get_ydata()
    array([ 0.2,  0.1, -0.3])
    """
    rows = rows_of("scores", influence_scores)
    if not rows.size:
        raise NothingToDraw("scores", f"scores of shape {rows.shape}", "a test point and an example or more")
    ax = axes(ax)
    for row in -np.sort(-rows, axis=1):
        ax.plot(
            np.arange(1, row.size + 1), row, color=HELPS, linewidth=1, alpha=max(0.1, 1 / len(rows) ** 0.5)
        )
    ax.axhline(0, color=NEUTRAL, linewidth=0.8)
    ax.set(xlabel=f"{influence_scores.axes[-1]} examples, the most helpful first", ylabel=_SCORE)
    return ax


def top_k(top: Any, test: int = 0, ax: Any = None) -> Any:
    """The most influential examples of one test point, as bars.

    Parameters
    ----------
    top : ihvp.influence.TopK
    test : int
        The number of the test point.
    ax : matplotlib.axes.Axes, optional

    Raises
    ------
    InvalidOption
        There is no such test point.

    Examples
    --------
    >>> import numpy as np
    >>> from ihvp import plot
    >>> from ihvp.influence import TopK
    >>> ax = plot.top_k(TopK(np.array([[7, 8]]), np.array([[0.4, -0.3]]), "both", residual=0.0))
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['7', '8']
    """
    check_test(test, len(top.scores))
    ax = axes(ax)
    values = top.scores[test]
    places = np.arange(len(values))
    ax.barh(places, values, color=np.where(values > 0, HELPS, HARMS))
    ax.set_yticks(places, [str(index) for index in top.indices[test]])
    ax.invert_yaxis()
    ax.axvline(0, color=NEUTRAL, linewidth=0.8)
    ax.set(xlabel=_SCORE, ylabel="training example")
    return ax


def rows_of(picture: str, influence_scores: Any) -> NDArray[Any]:
    """The scores, a row for each test point; those of tokens, which have one axis more, are refused."""
    rows = np.atleast_2d(np.asarray(influence_scores))
    if rows.ndim > 2:
        raise NothingToDraw(
            picture, f"scores of shape {rows.shape}", "scores of whole examples, (n_test, n_train)"
        )
    return rows


def check_test(test: int, count: int) -> None:
    """Refuse the number of a test point that is not there."""
    if not 0 <= test < count:
        raise InvalidOption("test", test, f"the number of a test point, from 0 to {count - 1}")
