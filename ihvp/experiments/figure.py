"""The figures' one size and style."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ihvp.plot.style import HARMS, HELPS, NEUTRAL, curves

__all__ = ["HARMS", "HELPS", "NEUTRAL", "panels", "styles"]


def panels(columns: int, rows: int = 1, height: float = 3.8, **options: Any) -> tuple[Any, Any]:
    """A figure and its axes, legible at half size; ``options`` go to ``Figure.subplots``.

    Without pyplot, so that no window system is asked for and no figure outlives the experiment.
    """
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(max(6.4, 4.2 * columns), height * rows), dpi=110, facecolor="white", layout="constrained"
    )
    axes = figure.subplots(rows, columns, **options)
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=11)
        ax.xaxis.label.set_fontsize(12)
        ax.yaxis.label.set_fontsize(12)
    return figure, axes


def styles() -> Iterator[dict[str, Any]]:
    """What ``Axes.plot`` takes to tell one curve from the next, without end."""
    for color, dashes, marker in curves():
        yield {"color": color, "marker": marker, "linestyle": dashes, "markersize": 4, "linewidth": 1.5}
