"""Predicted probabilities beside what came true."""

from __future__ import annotations

from typing import Any

import numpy as np

from ihvp.errors import NothingToDraw
from ihvp.plot.style import NEUTRAL, axes, curve


def calibration(found: Any, ax: Any = None, *, label: str | None = None) -> Any:
    """How often predictions came true against how often they say so, with two standard errors.

    Points below the line are overconfident.

    Parameters
    ----------
    found : ihvp.uncertainty.Calibration or Coverage
        Of classes, a point is a bin of confidences, its area the share of examples; of intervals, a level.
    ax : matplotlib.axes.Axes, optional
        Several results may share one.
    label : str, optional

    Raises
    ------
    NothingToDraw
        It is neither.

    Examples
    --------
    >>> import ihvp
    >>> from ihvp import plot
    >>> ax = plot.calibration(ihvp.calibration([[0.8, 0.2], [0.7, 0.3], [0.4, 0.6]], [0, 1, 1]))
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('confidence', 'accuracy')
    """
    if hasattr(found, "confidences"):
        names, shares = ("confidence", "accuracy"), found.counts / found.counts.sum()
        x, y, errors = found.confidences, found.accuracies, found.standard_errors
    elif hasattr(found, "levels"):
        names = "level of the interval", "part of the targets within"
        shares = np.full(len(found.levels), 1 / 4)
        x, y, errors = found.levels, found.observed, found.standard_errors
    else:
        raise NothingToDraw("calibration", type(found).__name__, "what ihvp.calibration or coverage returns")
    ax = axes(ax)
    if not ax.lines:
        ax.plot([0, 1], [0, 1], color=NEUTRAL, linestyle="--", linewidth=1)
    color, _, marker = curve(len(ax.containers))
    used = shares > 0
    ax.errorbar(x[used], y[used], 2 * errors[used], fmt="none", color=color, linewidth=1)
    ax.scatter(x[used], y[used], 20 + 200 * shares[used], color=color, marker=marker, alpha=0.7, label=label)
    ax.set(xlabel=names[0], ylabel=names[1], xlim=(0, 1), ylim=(0, 1))
    if label:
        ax.legend(frameon=False)
    return ax
