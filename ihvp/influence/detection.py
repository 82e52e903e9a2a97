"""How soon mislabelled examples are found when the data is checked in the order of a score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ihvp.arguments import as_array, check_number
from ihvp.errors import InvalidOption


@dataclass(frozen=True, eq=False)
class DetectionCurve:
    """The fraction found against the fraction checked.

    Attributes
    ----------
    checked, found : ndarray (n + 1,)
        From 0 to 1.

    Examples
    --------
    >>> curve = detection_curve([0.9, 0.1, 0.8, 0.2], [True, False, False, True])
    >>> curve.found
    array([0. , 0.5, 0.5, 1. , 1. ])
    """

    checked: NDArray[np.float64]
    found: NDArray[np.float64]

    def at(self, fraction: float) -> float:
        """The fraction found after checking this fraction of the data.

        Raises
        ------
        InvalidOption
            It is no fraction.
        """
        check_number("fraction", fraction, lambda part: 0 <= part <= 1, "a number from 0 to 1")
        # A part of an example cannot be checked.
        return float(self.found[int(np.floor(fraction * (len(self.checked) - 1) + 1e-9))])

    def plot(self, ax: Any = None, label: str | None = None) -> Any:
        """Draw the curve beside random checking, and return the matplotlib ``Axes``."""
        from ihvp import plot

        return plot.detection(self, ax=ax, label=label)


def detection_curve(scores: ArrayLike, mislabelled: ArrayLike) -> DetectionCurve:
    """The curve of checking the examples with the highest scores first.

    Parameters
    ----------
    scores : array (n,)
        Such as :meth:`ihvp.Influence.self_influence`, or the losses of the examples.
    mislabelled : array of bool (n,)
        Which are in fact mislabelled.

    Raises
    ------
    InvalidOption
        The shapes differ, none is mislabelled, or a score is NaN.

    Examples
    --------
    >>> curve = detection_curve([0.1, 0.9, 0.2, 0.5], [False, True, True, False])
    >>> curve.at(0.25), curve.at(0.5), curve.at(0.75)
    (0.5, 0.5, 1.0)
    """
    values, wrong = as_array("scores", scores), as_array("mislabelled", mislabelled, "b", "booleans")
    if values.ndim != 1 or values.shape != wrong.shape or wrong.dtype != bool or not wrong.any():
        raise InvalidOption(
            "mislabelled",
            f"{wrong.dtype} of shape {wrong.shape}, {int(np.count_nonzero(wrong))} of them true",
            f"booleans of shape {values.shape}, one for each score, at least one true",
        )
    if np.isnan(values).any():
        raise InvalidOption(
            "scores", f"NaN at {int(np.isnan(values).argmax())}", "numbers, which have an order"
        )
    found = np.cumsum(wrong[np.argsort(-values, kind="stable")]) / np.count_nonzero(wrong)
    return DetectionCurve(np.linspace(0, 1, len(values) + 1), np.concatenate([[0.0], found]))
