"""A test image beside the training images behind a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp.algebra import as_numpy
from ihvp.errors import InvalidOption, NothingToDraw, NotImages
from ihvp.plot.ranking import check_test, rows_of
from ihvp.plot.style import HELPS, pyplot

# Vermilion, darker than in curves: small letters need the contrast.
HARMED = "#B84A00"
_CHANNELS = {1, 3, 4}


def influence_panels(
    ranked: Any,
    images: Any,
    question: Any = None,
    *,
    test: int = 0,
    k: int = 5,
    labels: Sequence[Any] | None = None,
    title: str | None = None,
    figure: Any = None,
) -> Any:
    """A test image and the training images that helped and harmed its prediction most, with their scores.

    Parameters
    ----------
    ranked : ihvp.influence.Scores or ihvp.influence.TopK
        Of a ``TopK``, those that it holds: both rows only where it was made with ``which="both"``.
    images : array_like (N, height, width), or with channels before or after
        The training images, in the order of the training data; grey, or with red, green and blue.
    question : array_like, optional
        The image of the test point; without it there are the rows alone.
    test : int
        The number of the test point among the scores.
    k : int
        The most images in a row.
    labels : sequence, optional
        What to write above each training image; without it, its number.
    title : str, optional
        What to write above the test image, its label for instance.
    figure : matplotlib.figure.Figure or SubFigure, optional
        Filled with the panels; one with ``layout="constrained"`` gives them room.

    Returns
    -------
    matplotlib.figure.Figure or SubFigure

    Raises
    ------
    NotImages
        The inputs have no height and width, or there are fewer than the scores refer to.
    NothingToDraw
        All scores of the test point are 0.
    InvalidOption
        There is no such test point, or ``k`` is no positive number.

    Examples
    --------
    >>> import numpy as np
    >>> from ihvp import plot
    >>> from ihvp.influence import Scores
    >>> scores = Scores(np.array([[0.3, -0.2, 0.1]]), ("test", "train"), residual=0.0)
    >>> images = np.random.default_rng(0).random((3, 8, 8))
    >>> figure = plot.influence_panels(scores, images, question=images[0], labels=["a 4", "an 8", "a 4"])
    >>> [ax.get_xlabel() for ax in figure.axes if ax.get_xlabel()]
    ['+0.300', '+0.100', '-0.200']
    """
    if k < 1:
        raise InvalidOption("k", k, "an integer of 1 or more")
    helpful, harmful = _most(ranked, test, k)
    if not helpful and not harmful:
        raise NothingToDraw("influence_panels", f"no score but 0 for test point {test}", "some influence")
    shown = {i: picture(images, i) for i, _ in (*helpful, *harmful)}
    asked = None if question is None else picture(as_numpy(question)[None], 0)
    both = ("helped", HELPS, helpful), ("harmed", HARMED, harmful)
    rows = [(f"Training examples that {what} most", color, most) for what, color, most in both if most]
    columns = max(len(row[2]) for row in rows)
    if figure is None:
        size = (1.1 * columns + (0 if asked is None else 2.6), 1.9 * len(rows))
        figure = pyplot().figure(figsize=size, layout="constrained")
    right = figure
    if asked is not None:
        left, right = figure.subfigures(1, 2, width_ratios=(2.2, 1.1 * columns))
        show(left.subplots(), asked, title)
    # Equal values look equal in all panels.
    span = min(each.min() for each in shown.values()), max(each.max() for each in shown.values())
    for part, (heading, color, entries) in zip(
        np.atleast_1d(right.subfigures(len(rows), 1)), rows, strict=True
    ):
        part.suptitle(heading, x=0.01, ha="left", color=color, fontsize=12, fontweight="bold")
        panels = np.atleast_1d(part.subplots(1, columns))
        for ax, (i, score) in zip(panels, entries, strict=False):
            show(ax, shown[i], str(i) if labels is None else str(labels[i]), *span)
            ax.set_xlabel(f"{score:+#.3g}".rstrip("."), color=color, fontsize=10)
        for ax in panels[len(entries) :]:
            ax.set_axis_off()
    return figure


def show(
    ax: Any,
    pixels: NDArray[Any],
    title: str | None = None,
    low: float | None = None,
    high: float | None = None,
) -> None:
    """One image in ``ax``, grey ones black on white, without ticks."""
    ax.imshow(pixels, cmap="gray_r", vmin=low, vmax=high)
    ax.set(xticks=[], yticks=[])
    if title is not None:
        ax.set_title(title, fontsize=11)


def picture(images: Any, index: int) -> NDArray[Any]:
    """One of the images, ``(height, width)`` or ``(height, width, channels)``."""
    shape = tuple(images.shape if hasattr(images, "shape") else np.shape(images))
    if len(shape) not in (3, 4) or (len(shape) == 4 and not {shape[1], shape[3]} & _CHANNELS):
        side = isqrt(shape[1]) if len(shape) == 2 else 0
        flat = side > 1 and side * side == shape[1]
        raise NotImages(
            f"inputs of shape {shape}", f"Flat pixels: x.reshape(-1, {side}, {side})." if flat else ""
        )
    if index >= shape[0]:
        raise NotImages(
            f"{shape[0]:,} images, where a score belongs to example {index:,}",
            "Pass all training inputs, in the order of the training data.",
        )
    pixels = as_numpy(images[index])
    if pixels.ndim == 3 and pixels.shape[2] not in _CHANNELS:
        pixels = np.moveaxis(pixels, 0, 2)
    return pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def _most(ranked: Any, test: int, k: int) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """The number and the score of up to k examples that helped, and of up to k that harmed."""
    if hasattr(ranked, "indices"):
        check_test(test, len(ranked.scores))
        indices, scores = ranked.indices[test], ranked.scores[test]
    else:
        rows = rows_of("influence_panels", ranked)
        check_test(test, len(rows))
        indices, scores = np.arange(rows.shape[1]), rows[test]
    order = np.argsort(-scores, kind="stable")
    helpful = [(int(indices[i]), float(scores[i])) for i in order[:k] if scores[i] > 0]
    harmful = [(int(indices[i]), float(scores[i])) for i in order[::-1][:k] if scores[i] < 0]
    return helpful, harmful
