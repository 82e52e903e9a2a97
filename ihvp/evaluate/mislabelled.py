"""How well a score tells mislabelled examples from others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ihvp.errors import InvalidOption
from ihvp.influence.detection import DetectionCurve, detection_curve
from ihvp.packages import required

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Detection:
    """The area under the receiver operating characteristic of a score for mislabelled examples.

    Attributes
    ----------
    value : float
        The probability that a mislabelled example has a higher score than another one, ties counted by half:
        1 is perfect, 1/2 what random scores have.
    standard_error : float
        DeLong's; NaN where there is only one mislabelled example, or one other.
    curve : ihvp.influence.DetectionCurve
        The fraction found against the fraction checked.

    Examples
    --------
    >>> from ihvp.influence import detection_curve
    >>> print(Detection(0.75, 0.1, detection_curve([0.9, 0.1], [True, False])))
    AUC 0.750 ± 0.100
    """

    value: float
    standard_error: float
    curve: DetectionCurve

    def to_pandas(self) -> pandas.DataFrame:
        """A ``DataFrame`` with the columns checked and found; needs pandas."""
        pandas = required("pandas", "Detection.to_pandas", "pip install pandas")
        return pandas.DataFrame({"checked": self.curve.checked, "found": self.curve.found})

    def plot(self, ax: Any = None, label: str | None = None) -> Any:
        """Draw the curve beside random checking, and return the matplotlib ``Axes``."""
        return self.curve.plot(ax=ax, label=str(self) if label is None else label)

    def __str__(self) -> str:
        return f"AUC {self.value:.3f} ± {self.standard_error:.3f}"


def detection(self_scores: Any, mislabelled: Any) -> Detection:
    """How well a score finds mislabelled examples: the area under its curve, and its standard error.

    The standard error is that of DeLong, DeLong and Clarke-Pearson ("Comparing the areas under two or more
    correlated receiver operating characteristic curves", Biometrics 44, 1988).

    Parameters
    ----------
    self_scores : array (n,)
        High where an example is suspicious: :meth:`ihvp.Influence.self_influence`, or the losses.
    mislabelled : array of bool (n,)

    Raises
    ------
    InvalidOption
        The shapes differ, none or all are mislabelled, or a score is NaN.

    Examples
    --------
    >>> import ihvp
    >>> print(ihvp.evaluate.detection([0.9, 0.1, 0.8, 0.2, 0.3], [True, False, True, False, False]))
    AUC 1.000 ± 0.000
    """
    from scipy.stats import rankdata  # loaded only where it is asked for

    curve = detection_curve(self_scores, mislabelled)
    values, wrong = np.asarray(self_scores), np.asarray(mislabelled)
    if wrong.all():
        raise InvalidOption("mislabelled", "true for all examples", "some that are not mislabelled")
    ranks = rankdata(values)
    # How many of the other kind each example is above: its place among all, less that among its own.
    above_others, above_wrong = (
        (ranks[kind] - rankdata(values[kind])) / np.count_nonzero(~kind) for kind in (wrong, ~wrong)
    )
    variance = sum(_variance(placements) / placements.size for placements in (above_others, above_wrong))
    return Detection(float(above_others.mean()), float(np.sqrt(variance)), curve)


def _variance(placements: NDArray[np.float64]) -> float:
    return float(placements.var(ddof=1)) if placements.size > 1 else np.nan
