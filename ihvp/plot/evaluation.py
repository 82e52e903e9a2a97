"""How good scores are: at each test point, over dampings, and by what removals do and checking finds."""

from __future__ import annotations

from typing import Any

import numpy as np

from ihvp.errors import NothingToDraw
from ihvp.plot.style import HELPS, NEUTRAL, Style, axes, curve


def agreement(found: Any, ax: Any = None, label: str | None = None) -> Any:
    """The correlation at each test point in ascending order, with the mean as a line.

    Parameters
    ----------
    found : ihvp.evaluate.Agreement
    ax : matplotlib.axes.Axes, optional
        Several methods may share it.
    label : str, optional
        The method; by default the mean and its standard error.

    Examples
    --------
    >>> import numpy as np
    >>> from ihvp import plot
    >>> from ihvp.evaluate import Agreement
    >>> ax = plot.agreement(Agreement("LDS", np.array([0.7, 0.5]), np.ones((2, 2))))
    >>> ax.lines[0].get_ydata()
    array([0.5, 0.7])
    """
    ax = axes(ax)
    color, dashes, _ = _next_style(ax)
    values = np.sort(found.per_test[found.defined])
    label = f"{found.value:.3f} ± {found.standard_error:.3f}" if label is None else label
    ax.plot(np.linspace(0, 1, len(values)), values, color=color, linestyle=dashes, linewidth=2, label=label)
    ax.axhline(found.value, color=color, linewidth=0.8)
    ax.set(xlabel="fraction of the test points", ylabel=found.what)
    ax.legend(loc="upper left", frameon=False)
    return ax


def dampings(path: Any, ax: Any = None, label: str | None = None) -> Any:
    """The linear datamodelling score over the damping, with standard errors, and the damping to take.

    Parameters
    ----------
    path : ihvp.evaluate.DampingPath
    ax : matplotlib.axes.Axes, optional
        Several paths may share it.
    label : str, optional
        The curvature.

    Examples
    --------
    >>> import numpy as np
    >>> from ihvp import plot
    >>> from ihvp.evaluate import Agreement, DampingPath
    >>> each = [Agreement("LDS", np.array([value, value]), np.ones((2, 2))) for value in (0.4, 0.6)]
    >>> ax = plot.dampings(DampingPath(np.array([0.1, 1.0]), each))
    >>> ax.get_xscale(), ax.get_xlabel()
    ('symlog', 'damping λ')
    """
    ax = axes(ax)
    color, dashes, marker = _next_style(ax)
    _with_errors(ax, path.dampings, path.value, path.standard_error, (color, dashes, marker), label)
    ax.axvline(path.damping, color=color, linewidth=0.8, linestyle=":")
    positive = path.dampings[path.dampings > 0]
    # Linear up to the smallest damping, so that 0 has a place.
    ax.set_xscale("symlog", linthresh=float(positive.min()) if positive.size else 1.0)
    ax.set(xlabel="damping λ", ylabel="LDS")
    if label is not None:
        ax.legend(loc="best", frameon=False)
    return ax


def brittleness(found: Any, ax: Any = None, label: str | None = None) -> Any:
    """The mean rise of the loss over the number of removed examples, beside random removals.

    Parameters
    ----------
    found : ihvp.evaluate.Brittleness
    ax : matplotlib.axes.Axes, optional
        Several methods may share it.
    label : str, optional
        The method.

    Examples
    --------
    >>> import numpy as np
    >>> from ihvp import plot
    >>> from ihvp.evaluate import Brittleness
    >>> ax = plot.brittleness(Brittleness(np.array([1, 5]), np.ones((2, 3)), np.zeros((2, 3))))
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['at random', 'the most helpful']
    """
    ax = axes(ax)
    if not ax.lines:
        random = found.random_per_test.mean(axis=1)
        ax.plot(found.ks, random, color=NEUTRAL, linewidth=1, linestyle=":", marker=".", label="at random")
    label = "the most helpful" if label is None else label
    _with_errors(ax, found.ks, found.value, found.standard_error, _next_style(ax), label)
    ax.set(xlabel="examples removed", ylabel="mean rise of the test loss")
    ax.legend(loc="upper left", frameon=False)
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
    color, dashes, _ = _next_style(ax)
    ax.plot(curve.checked, curve.found, linewidth=2, label=label, color=color, linestyle=dashes)
    ax.set(xlabel="fraction of the training data checked", ylabel="fraction of the mislabelled found")
    ax.legend(loc="lower right", frameon=False)
    return ax


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


def _with_errors(ax: Any, x: Any, y: Any, errors: Any, style: Style, label: str | None) -> None:
    color, dashes, marker = style
    ax.plot(x, y, color=color, linestyle=dashes, marker=marker, linewidth=2, label=label)
    ax.fill_between(x, y - errors, y + errors, color=color, alpha=0.2, linewidth=0)


def _next_style(ax: Any) -> Style:
    """Of one curve more than the axes have; lines of reference are thin."""
    return curve(sum(line.get_linewidth() > 1 for line in ax.lines))
