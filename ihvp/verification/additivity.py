"""Whether a loss adds up: the gradient of a batch is the weighted mean, or the sum, of those of its parts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Batch, Vector
from ihvp.data import arrays_of, count_examples, take_examples
from ihvp.errors import LossIgnoresBatch, LossNotAdditive
from ihvp.verification.subject import Subject

# A combination of the parts that explains the whole may miss it by so many times the tolerance.
_LOOSE = 5.0

_WEIGHTS = "Pass weights=…, a function weights(batch) -> (B,) of what the mean divides by, example by example"


@dataclass(frozen=True, eq=False)
class Partition:
    """The gradients of a batch and of two parts of it.

    Attributes
    ----------
    whole, first, second : Vector
        The gradients.
    sizes : (int, int)
        How many examples the parts have.
    share : float
        What the first part weighs in the mean.
    sum_declared : bool
        Whether the loss is said to be a sum.
    """

    whole: Vector
    first: Vector
    second: Vector
    sizes: tuple[int, int]
    share: float
    sum_declared: bool

    @property
    def size(self) -> float:
        """The norm that differences are small against; of the parts, because they cancel at an optimum."""
        a, b = self._factors
        return float(a * algebra.norms(self.first) + b * algebra.norms(self.second))

    @property
    def difference(self) -> float:
        """``‖g − a g₁ − b g₂‖`` for the declared a and b, relative to :attr:`size`."""
        return self._distance(*self._factors)

    @property
    def _factors(self) -> tuple[float, float]:
        return (1.0, 1.0) if self.sum_declared else (self.share, 1 - self.share)

    def _distance(self, a: float, b: float) -> float:
        rest = algebra.axpy(algebra.copy(self.whole), -a, self.first)
        distance, size = float(algebra.norms(algebra.axpy(rest, -b, self.second))), self.size
        return distance / size if size else (0.0 if distance == 0 else math.inf)

    def ignores_batch(self) -> bool:
        """Whether both parts have the same gradient, bit for bit."""
        return float(algebra.norms(algebra.axpy(algebra.copy(self.first), -1.0, self.second))) == 0

    def cause(self, allowed: float, weighted: bool) -> str:
        """What the whole is instead, and what to do, as far as it can be told."""
        if not (algebra.all_finite(self.first) and algebra.all_finite(self.second)):
            return (
                "Of a part of the batch it is not finite: a mean over nothing, as where labels are missing. "
                f"{_WEIGHTS}: 0 for those without labels."
            )
        loose = _LOOSE * allowed
        if not self.sum_declared and self._distance(1.0, 1.0) <= loose:
            return (
                "It is their sum: return the mean over the batch, or pass reduction='sum'. A sum must not be "
                "divided by a fixed number."
            )
        if self.sum_declared and self._distance(self.share, 1 - self.share) <= loose:
            return "It is their mean: pass reduction='mean', or return the sum over the batch."
        found = self._fitted_share()
        if self._distance(found, 1 - found) <= loose and 0 < found < 1:
            count = sum(self.sizes)
            said = "the weights say" if weighted else "their number says"
            return (
                f"It is a mean in which the first {self.sizes[0]} of {count} examples weigh {found:.2%}, "
                f"where {said} {self.share:.2%}: as a mean over tokens, or with class weights. {_WEIGHTS}."
            )
        if self.sum_declared:
            return (
                "A sum must have no term that stays the same for a larger batch, such as a regulariser; nor "
                "may examples depend on each other, as by batch norm in training."
            )
        return (
            "Its examples depend on each other, as with negatives from the batch, or batch norm in training. "
            "Call model.eval() (torch) or pass training=False (Keras); or keep all data in one batch, where "
            "products with ihvp.Hessian and ihvp.GaussNewton need no parts."
        )

    def _fitted_share(self) -> float:
        """The α with which ``α g₁ + (1 − α) g₂`` is nearest to g."""
        across = algebra.axpy(algebra.copy(self.first), -1.0, self.second)
        rest = algebra.axpy(algebra.copy(self.whole), -1.0, self.second)
        square = float(algebra.dots(across, across))
        return float(algebra.dots(across, rest)) / square if square else math.nan


def compare_with_parts(subject: Subject, batch: Batch, whole: Vector | None = None) -> str:
    """Check that the gradient of a batch is that of its parts; a sentence if nothing can be said of it.

    The size of a part and that of the batch have no common divisor, so that examples of two kinds cannot be
    mixed alike in both. Single precision takes two partitions: nearly equal mixtures hide there in rounding.

    Parameters
    ----------
    subject : Subject
    batch : Batch
        Of at least two examples.
    whole : Vector, optional
        Its gradient, where it is known.

    Raises
    ------
    LossNotAdditive, LossIgnoresBatch
    """
    count = count_examples(batch)
    weights = subject.weighting.of(batch, count)
    allowed = subject.space.eps**0.5
    most = 1 if subject.space.eps < 1e-10 else 2
    checked = 0
    for stop in _stops(weights, most):
        try:
            partition = _divided(subject, batch, weights, stop, whole)
        except Exception as error:  # what a loss raises on a part of a batch is its own
            return f"the loss cannot take a part of a batch: {type(error).__name__}: {error}"
        whole = partition.whole
        if not algebra.all_finite(whole):
            return "the gradient is not finite"
        ignored = partition.ignores_batch() and _rows_differ(batch)
        if ignored or not partition.difference <= allowed:
            # Where every example is fitted, gradients are as small as their own rounding: not so elsewhere.
            elsewhere = _elsewhere(subject, batch, weights, stop)
            if ignored and elsewhere is not None and elsewhere.ignores_batch():
                raise LossIgnoresBatch
        if not partition.difference <= allowed:
            if elsewhere is not None and elsewhere.difference <= allowed:
                continue
            declared = "sum" if subject.reduction == "sum" else "weighted mean"
            cause = partition.cause(allowed, subject.weighting.function is not None)
            raise LossNotAdditive(partition.difference, declared, cause)
        checked += 1
    return "" if checked else "the batch has no two parts that weigh anything"


def _divided(
    subject: Subject, batch: Batch, weights: NDArray[np.float64], stop: int, whole: Vector | None
) -> Partition:
    count = len(weights)
    return Partition(
        subject.gradient(batch) if whole is None else whole,
        subject.gradient(take_examples(batch, 0, stop)),
        subject.gradient(take_examples(batch, stop, count)),
        (stop, count - stop),
        float(weights[:stop].sum() / weights.sum()),
        subject.reduction == "sum",
    )


def _elsewhere(subject: Subject, batch: Batch, weights: NDArray[np.float64], stop: int) -> Partition | None:
    """The same at a random point nearby; None where the loss has no value there."""
    try:
        return _divided(subject.nearby(), batch, weights, stop, None)
    except Exception:  # it is the loss at the parameters that counts
        return None


def _stops(weights: NDArray[np.float64], most: int) -> Iterator[int]:
    """Where to divide a batch: parts of about two and three fifths, both of some weight."""
    count, found = len(weights), 0
    near = sorted(range(1, count), key=lambda size: abs(size - 0.4 * count))
    for size in near[:64]:
        if math.gcd(size, count) > 1:
            continue
        for stop in dict.fromkeys((size, count - size)):
            if found < most and weights[:stop].any() and weights[stop:].any():
                found += 1
                yield stop


def _rows_differ(batch: Batch) -> bool:
    for _, array in arrays_of(batch):
        known = array_api_compat.is_array_api_obj(array)
        values = np.asarray(algebra.to_numpy(array) if known else array)
        if np.any(values[1:] != values[:1]):
            return True
    return False
