"""Pictures of results; every function draws into ``ax`` and returns it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ihvp.errors import PackageNotInstalled

# Blue, vermilion and grey of Okabe and Ito's palette, which every kind of colour vision tells apart.
HELPS, HARMS, NEUTRAL = "#0072B2", "#D55E00", "#555555"
# Of several curves; the dashes tell them apart where they run together, or in print.
_CURVES = ((HELPS, "-"), (HARMS, "--"), ("#009E73", "-."), ("#CC79A7", (0, (1, 1))))


def leave_one_out(removals: Any, ax: Any = None) -> Any:
    """Actual over predicted changes of the loss, with the line where they agree.

    Parameters
    ----------
    removals : ihvp.influence.LeaveOneOut
    ax : matplotlib.axes.Axes, optional
    """
    ax = _axes(ax)
    low = min(removals.predicted.min(), removals.actual.min())
    high = max(removals.predicted.max(), removals.actual.max())
    ax.plot([low, high], [low, high], color=NEUTRAL, linewidth=1, label="actual = predicted")
    ax.plot(removals.predicted, removals.actual, ".", color=HELPS, markersize=5, alpha=0.7)
    ax.set_xlabel("predicted change of the test loss")
    ax.set_ylabel("actual change, by training again")
    ax.set_title(
        f"r = {removals.pearson.value:.4f}, slope {removals.slope:.3f}, n = {len(removals.actual):,}"
    )
    ax.set_aspect("equal", adjustable="datalim")
    ax.legend(loc="upper left", frameon=False)
    return ax


def scores(influence_scores: Any, ax: Any = None) -> Any:
    """Scores in order, the most helpful first: a line for each test point.

    Parameters
    ----------
    influence_scores : ihvp.influence.Scores
    ax : matplotlib.axes.Axes, optional
    """
    ax = _axes(ax)
    rows = np.atleast_2d(np.asarray(influence_scores))
    ordered = -np.sort(-rows, axis=1)
    for row in ordered:
        ax.plot(
            np.arange(1, row.size + 1), row, color=HELPS, linewidth=1, alpha=max(0.1, 1 / len(rows) ** 0.5)
        )
    ax.axhline(0, color=NEUTRAL, linewidth=0.8)
    ax.set_xlabel(f"{influence_scores.axes[-1]} examples, the most helpful first")
    ax.set_ylabel("predicted rise of the loss without it")
    return ax


def top_k(top: Any, test: int = 0, ax: Any = None) -> Any:
    """The most influential examples of one test point, as bars.

    Parameters
    ----------
    top : ihvp.influence.TopK
    test : int
        The number of the test point.
    ax : matplotlib.axes.Axes, optional
    """
    ax = _axes(ax)
    values = top.scores[test]
    places = np.arange(len(values))
    ax.barh(places, values, color=np.where(values > 0, HELPS, HARMS))
    ax.set_yticks(places, [str(index) for index in top.indices[test]])
    ax.invert_yaxis()
    ax.axvline(0, color=NEUTRAL, linewidth=0.8)
    ax.set_ylabel("training example")
    ax.set_xlabel("predicted rise of the loss without it")
    return ax


def detection(curve: Any, ax: Any = None, label: str | None = None) -> Any:
    """The fraction of mislabelled examples found against the fraction checked, beside random checking.

    Parameters
    ----------
    curve : ihvp.influence.DetectionCurve
    ax : matplotlib.axes.Axes, optional
        Several curves may share it.
    label : str, optional
        What the examples are ranked by.
    """
    ax = _axes(ax)
    if not ax.lines:
        ax.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=1, linestyle=":", label="random order")
    color, style = _CURVES[(len(ax.lines) - 1) % len(_CURVES)]
    ax.plot(curve.checked, curve.found, linewidth=2, label=label, color=color, linestyle=style)
    ax.set_xlabel("fraction of the training data checked")
    ax.set_ylabel("fraction of the mislabelled found")
    ax.legend(loc="lower right", frameon=False)
    return ax


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise PackageNotInstalled("ihvp.plot", "matplotlib", "pip install 'ihvp[plot]'") from error
    return plt.subplots(layout="constrained")[1]
