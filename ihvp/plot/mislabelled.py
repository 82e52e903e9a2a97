"""How soon a ranking finds the mislabelled examples."""

from __future__ import annotations

from itertools import islice
from typing import Any

from ihvp.plot.style import NEUTRAL, axes, curves


def detection(curve: Any, ax: Any = None, label: str | None = None) -> Any:
    """The fraction of mislabelled examples found against the fraction checked, beside random checking.

    Parameters
    ----------
    curve : ihvp.influence.DetectionCurve
    ax : matplotlib.axes.Axes, optional
        Several curves may share it.
    label : str, optional
        What the examples are ranked by.

    Examples
    --------
    >>> from ihvp import plot
    >>> from ihvp.influence import detection_curve
    >>> ax = plot.detection(detection_curve([0.2, 0.9], [False, True]), label="by self-influence")
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['random order', 'by self-influence']
    """
    ax = axes(ax)
    if not ax.lines:
        ax.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=1, linestyle=":", label="random order")
    color, dashes, _ = next(islice(curves(), len(ax.lines) - 1, None))
    ax.plot(curve.checked, curve.found, linewidth=2, label=label, color=color, linestyle=dashes)
    ax.set(xlabel="fraction of the training data checked", ylabel="fraction of the mislabelled found")
    ax.legend(loc="lower right", frameon=False)
    return ax
