"""Whether predicted probabilities and error bars are as often right as they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.arguments import as_array, check_integer
from ihvp.errors import InvalidOption
from ihvp.estimators.probes import Estimate


@dataclass(frozen=True)
class Calibration:
    r"""How predicted probabilities compare with what came true.

    Each number is an :class:`~ihvp.Estimate` with its standard error over other examples.

    Attributes
    ----------
    accuracy : Estimate
        How often the most probable class is the right one.
    negative_log_likelihood : Estimate
        ``−log p`` of the right class, per example.
    brier : Estimate
        ``Σ_c (p_c − y_c)²`` per example.
    expected_calibration_error : Estimate
        ``Σ_b n_b / n |accuracy_b − confidence_b|`` over bins of confidence (Guo et al., "On calibration of
        modern neural networks", ICML 2017).
    by_chance : float
        What that would be on average for a calibrated model, from so many examples in such bins.
    counts, confidences, accuracies, standard_errors : ndarray (num_bins,)
        Of each bin; NaN in place of means of nothing.

    Examples
    --------
    >>> import ihvp
    >>> found = ihvp.calibration([[0.9, 0.1], [0.8, 0.2]], [0, 1], num_bins=2)
    >>> found.counts, found.accuracies
    (array([0, 2]), array([nan, 0.5]))
    """

    accuracy: Estimate
    negative_log_likelihood: Estimate
    brier: Estimate
    expected_calibration_error: Estimate
    by_chance: float
    counts: NDArray[np.int64]
    confidences: NDArray[np.float64]
    accuracies: NDArray[np.float64]
    standard_errors: NDArray[np.float64]


@dataclass(frozen=True)
class Coverage:
    """How often targets lie within intervals of a normal predictive distribution.

    Attributes
    ----------
    levels, observed, standard_errors : ndarray (L,)
        What is promised, what is found, and the standard error of that at the promised level.
    negative_log_likelihood : Estimate
        Of a target.

    Examples
    --------
    >>> import ihvp
    >>> ihvp.coverage([0.0, 0.0], [1.0, 1.0], [0.5, 2.0], levels=[0.9]).observed
    array([0.5])
    """

    levels: NDArray[np.float64]
    observed: NDArray[np.float64]
    standard_errors: NDArray[np.float64]
    negative_log_likelihood: Estimate


def calibration(probabilities: Any, labels: Any, *, num_bins: int = 15) -> Calibration:
    """Compare predicted class probabilities with the true classes.

    Parameters
    ----------
    probabilities : array (n, C)
        Numbers from 0 to 1; rows sum to 1. ``(n,)`` or ``(n, 1)`` are those of class 1 of two.
    labels : array (n,) of int
        From 0 to C − 1.
    num_bins : int
        Bins of equal width for the confidence, the largest probability.

    Raises
    ------
    InvalidOption
        Shapes or values are others.

    Examples
    --------
    >>> import ihvp
    >>> found = ihvp.calibration([[0.8, 0.2], [0.7, 0.3], [0.4, 0.6]], [0, 1, 1], num_bins=2)
    >>> round(found.expected_calibration_error.value, 3), round(found.accuracy.value, 3)
    (0.033, 0.667)
    """
    check_integer("num_bins", num_bins, 1)
    p = as_array("probabilities", algebra.as_numpy(probabilities)).astype(np.float64)
    y = as_array("labels", algebra.to_numpy(labels), "iu", "integers, as an array")
    if p.ndim == 1 or p.shape[1:] == (1,):
        p = np.stack([1 - p.reshape(-1), p.reshape(-1)], axis=1)
    if p.ndim != 2 or y.shape != p.shape[:1] or not y.size:
        raise InvalidOption(
            "probabilities",
            f"of shape {p.shape} for labels of shape {y.shape}",
            "a row of class probabilities, (n, C), for each of n ≥ 1 labels, (n,)",
        )
    if not (np.all(p >= 0) and np.all(np.abs(p.sum(axis=1) - 1) <= 1e-4)):
        raise InvalidOption(
            "probabilities",
            f"with sums of rows from {p.sum(axis=1).min():.3g} to {p.sum(axis=1).max():.3g}",
            "numbers from 0 to 1 in rows with the sum 1; of logits, take the softmax",
        )
    if y.min() < 0 or y.max() >= p.shape[1]:
        raise InvalidOption("labels", f"from {y.min()} to {y.max()}", f"classes from 0 to {p.shape[1] - 1}")
    confidence, right = p.max(axis=1), (p.argmax(axis=1) == y).astype(np.float64)
    of_label = p[np.arange(y.size), y]
    with np.errstate(divide="ignore"):
        losses = -np.log(of_label)
    # Bins are open below and closed above, the first one closed on both sides.
    place = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(place, minlength=num_bins)
    sums = [
        np.bincount(place, values, num_bins)
        for values in (confidence, right, confidence * (1 - confidence), (right - confidence) ** 2)
    ]
    with np.errstate(invalid="ignore", divide="ignore"):
        confidences, accuracies, spread, squares = (total / counts for total in sums)
        gaps = accuracies - confidences
        standard_errors = np.sqrt(accuracies * (1 - accuracies) / counts)
        variances = np.nan_to_num((squares - gaps**2) / counts)
        chance = np.sqrt(2 / np.pi * np.nan_to_num(spread / counts))
    shares = counts / y.size
    error = float(shares @ np.nan_to_num(np.abs(gaps)))
    return Calibration(
        _mean(right),
        _mean(losses),
        _mean((p**2).sum(axis=1) - 2 * of_label + 1),
        Estimate(error, float(np.sqrt(shares**2 @ variances)), 0),
        float(shares @ chance),
        counts,
        confidences,
        accuracies,
        standard_errors,
    )


def coverage(
    mean: Any, standard_deviation: Any, targets: Any, *, levels: Sequence[float] = (0.5, 0.9, 0.95)
) -> Coverage:
    """Compare normal predictive distributions with the targets, whatever the shape.

    Parameters
    ----------
    mean, standard_deviation, targets : array
        Of one shape; standard deviations above 0.
    levels : sequence of float
        Between 0 and 1.

    Raises
    ------
    InvalidOption
        Shapes or values are others.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> targets = np.array([-1.0, 0.0, 0.5, 3.0])
    >>> ihvp.coverage(np.zeros(4), np.ones(4), targets, levels=[0.9]).observed
    array([0.75])
    """
    from scipy.special import ndtri

    arrays = {"mean": mean, "standard_deviation": standard_deviation, "targets": targets}
    m, sd, y = (as_array(name, algebra.as_numpy(value)).astype(np.float64) for name, value in arrays.items())
    if not m.shape == sd.shape == y.shape or not y.size:
        raise InvalidOption(
            "targets", f"of shape {y.shape} for means {m.shape} and deviations {sd.shape}", "one shape"
        )
    if not np.all(sd > 0):
        raise InvalidOption("standard_deviation", float(sd.min()), "numbers > 0")
    distance = np.abs(y - m) / sd
    if not np.all(np.isfinite(distance)):
        raise InvalidOption("targets, or what is predicted", "not finite", "finite numbers")
    promised = as_array("levels", levels).astype(np.float64)
    if promised.ndim != 1 or not promised.size or not np.all((promised > 0) & (promised < 1)):
        raise InvalidOption("levels", levels, "a list of numbers between 0 and 1")
    observed = np.array([np.mean(distance <= ndtri((1 + level) / 2)) for level in promised])
    errors = np.sqrt(promised * (1 - promised) / y.size)
    losses = distance**2 / 2 + np.log(sd) + np.log(2 * np.pi) / 2
    return Coverage(promised, observed, errors, _mean(losses.ravel()))


def _mean(values: NDArray[np.float64]) -> Estimate:
    error = values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else np.nan
    return Estimate(float(values.mean()), float(error), 0)
