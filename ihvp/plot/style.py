"""The one quiet style of all pictures."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

from ihvp.packages import required

Style = tuple[str, Any, str]
"""Colour, dashes and marker of a curve."""

# Blue, vermilion and grey of Okabe and Ito's palette, which every kind of colour vision tells apart.
HELPS, HARMS, NEUTRAL = "#0072B2", "#D55E00", "#555555"
# Of several curves; dashes and markers tell them apart where they run together, or in print.
_CURVES: tuple[Style, ...] = (
    (HELPS, "-", "o"),
    (HARMS, "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", (0, (1, 1)), "D"),
    ("#56B4E9", (0, (5, 1)), "v"),
    ("#E69F00", (0, (3, 1, 1, 1)), "P"),
)


def curves() -> Iterator[Style]:
    """The style of one curve after the other, without end."""
    return cycle(_CURVES)


def curve(number: int) -> Style:
    """The style of the curve of this number, from 0 on."""
    return _CURVES[number % len(_CURVES)]


def axes(ax: Any = None) -> Any:
    """``ax``, or the axes of a new figure, without the frame's upper and right side."""
    if ax is None:
        ax = pyplot().subplots(layout="constrained")[1]
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def pyplot() -> Any:
    """``matplotlib.pyplot``."""
    return required("matplotlib.pyplot", "ihvp.plot", "pip install 'ihvp[plot]'")
