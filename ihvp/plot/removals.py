"""Predicted beside actual changes of a loss."""

from __future__ import annotations

from typing import Any

from ihvp.errors import NothingToDraw
from ihvp.plot.style import HELPS, NEUTRAL, axes


def leave_one_out(removals: Any, ax: Any = None) -> Any:
    """Actual over predicted changes of the loss, with the line where they agree.

    Parameters
    ----------
    removals : ihvp.influence.LeaveOneOut
    ax : matplotlib.axes.Axes, optional

    Raises
    ------
    NothingToDraw
        Nothing was removed.

    Examples
    --------
    >>> import numpy as np
    >>> from ihvp import plot
    >>> from ihvp.influence import LeaveOneOut
    >>> predicted = np.array([0.1, -0.2, 0.3, 0.4])
    >>> removals = LeaveOneOut([np.array([i]) for i in range(4)], predicted, 1.1 * predicted)
    >>> plot.leave_one_out(removals).get_title()
    'r = 1.0000, slope 1.100, n = 4'
    """
    if not len(removals.actual):
        raise NothingToDraw("leave_one_out", "no removals", "one or more")
    ax = axes(ax)
    low = min(removals.predicted.min(), removals.actual.min())
    high = max(removals.predicted.max(), removals.actual.max())
    ax.plot([low, high], [low, high], color=NEUTRAL, linewidth=1, label="actual = predicted")
    ax.plot(removals.predicted, removals.actual, ".", color=HELPS, markersize=5, alpha=0.7)
    ax.set(xlabel="predicted change of the test loss", ylabel="actual change, by training again")
    ax.set_title(
        f"r = {removals.pearson.value:.4f}, slope {removals.slope:.3f}, n = {len(removals.actual):,}"
    )
    ax.set_aspect("equal", adjustable="datalim")
    ax.legend(loc="upper left", frameon=False)
    return ax
