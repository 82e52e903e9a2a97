"""Whether a loss adds up: the gradient of a batch is the weighted mean, or the sum, of those of its parts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Batch, Vector
from ihvp.data import arrays_of, count_examples, take_examples
from ihvp.errors import LossIgnoresBatch, LossNotAdditive, WeightError
from ihvp.verification.partition import Partition
from ihvp.verification.probes import passes_on_sample
from ihvp.verification.subject import Subject

# A difference of up to so many times the measured rounding may be rounding.
_ROUNDING = 10.0
# Parts of so many examples can be divided themselves.
_DIVISIBLE = 16


def compare_with_parts(
    subject: Subject, batch: Batch, whole: Vector | None = None, *, any_weights: bool = False
) -> str | None:
    """Check that the gradient of a batch is that of its parts.

    The size of a part and that of the batch have no common divisor, so that examples of two kinds cannot be
    mixed alike in both. Single precision takes two partitions, because nearly equal mixtures hide there in
    rounding: the second one is that of the first part, whose gradient is known, if it has examples enough.

    ``whole`` is its gradient, where it is known. Where ``any_weights``, any combination of the parts will do,
    in place of the declared one. The result is empty, or says why nothing can be said of the loss; None where
    nothing can be said of it by this batch, in which fewer than two examples weigh anything. Raises
    LossNotAdditive or LossIgnoresBatch, and WeightError where examples weigh something else in a part of the
    batch.
    """
    if whole is None and adds_up_on_sample(subject, batch, any_weights=any_weights):
        return ""
    weights = subject.weighting.of(batch, count_examples(batch))
    allowed, unknown = subject.space.product_eps**0.5, ""
    stops = list(_stops(weights, 1 if subject.space.product_eps < 1e-10 else 2))
    partition = None
    for stop in stops:
        if partition is not None and stops[0] >= _DIVISIBLE and any(_stops(weights[: stops[0]], 1)):
            batch, whole, weights = _parts(batch, weights, stops[0])[0], partition.first, weights[: stops[0]]
            (stop,) = _stops(weights, 1)
        _check_weights(subject, batch, weights, stop)
        try:
            partition = _divided(subject, batch, weights, stop, whole)
        except Exception as error:  # what a loss raises on a part of a batch is its own
            return f"the loss cannot take a part of a batch: {type(error).__name__}: {error}"
        whole = partition.whole
        if not algebra.all_finite(whole):
            return "the gradient is not finite"
        if (
            partition.ignores_batch()
            and _rows_differ(batch)
            and _ignored_elsewhere(subject, batch, weights, stop)
        ):
            raise LossIgnoresBatch
        difference = partition.remainder if any_weights else partition.difference
        if difference <= allowed:
            continue
        # Nor are the gradients of fitted examples larger than their own rounding there, but elsewhere.
        other = _elsewhere(subject.nearby(), batch, weights, stop)
        if other is not None and (other.remainder if any_weights else other.difference) <= allowed:
            continue
        rounding = _rounding(subject, batch, partition)
        if difference <= _ROUNDING * rounding:
            unknown = f"the loss rounds its gradients by {rounding:.0e} of their size"
            continue
        raise LossNotAdditive(
            difference,
            "combinations" if any_weights else subject.declared,
            partition.cause(allowed, subject.weighting.function is not None),
        )
    return unknown if stops else None


def adds_up_on_sample(subject: Subject, batch: Batch, *, any_weights: bool = False) -> bool:
    """Whether the gradient of examples from all over a large batch is that of their parts, beyond doubt."""
    return passes_on_sample(
        batch, lambda part: compare_with_parts(subject, part, any_weights=any_weights) == ""
    )


def value_difference(subject: Subject, batch: Batch, evaluate: Callable[[Batch], Any]) -> float:
    """How far the value of a batch is from that of two parts, relative to theirs; 0 where it has none."""
    weights = subject.weighting.of(batch, count_examples(batch))
    for stop in _stops(weights, 1):
        try:
            values = [np.array([float(evaluate(part))]) for part in (batch, *_parts(batch, weights, stop))]
        except Exception:  # what a loss raises on a part of a batch is its own
            break
        return _partition(subject, weights, stop, *values).difference
    return 0.0


def _divided(
    subject: Subject, batch: Batch, weights: NDArray[np.float64], stop: int, whole: Vector | None
) -> Partition:
    whole = subject.gradient(batch) if whole is None else whole
    return _partition(
        subject, weights, stop, whole, *(subject.gradient(part) for part in _parts(batch, weights, stop))
    )


def _partition(
    subject: Subject, weights: NDArray[np.float64], stop: int, whole: Vector, first: Vector, second: Vector
) -> Partition:
    share = float(weights[:stop].sum() / weights.sum())
    sizes = stop, len(weights) - stop
    return Partition(whole, first, second, sizes, share, subject.reduction == "sum")


def _parts(batch: Batch, weights: NDArray[np.float64], stop: int) -> tuple[Batch, Batch]:
    return take_examples(batch, 0, stop), take_examples(batch, stop, len(weights))


def _elsewhere(subject: Subject, batch: Batch, weights: NDArray[np.float64], stop: int) -> Partition | None:
    """The same at other parameters; None where the loss has no value there."""
    try:
        return _divided(subject, batch, weights, stop, None)
    except Exception:  # it is the loss at the parameters that counts
        return None


def _ignored_elsewhere(subject: Subject, batch: Batch, weights: NDArray[np.float64], stop: int) -> bool:
    """Whether parts have the same gradient at other parameters too.

    Of fitted examples, losses with a margin have no slope, or only that of a regulariser.
    """
    points = itertools.chain([subject.nearby()], subject.far())
    partitions = (_elsewhere(point, batch, weights, stop) for point in points)
    known = (part for part in partitions if part is not None and algebra.all_finite(part.whole))
    first = next(known, None)
    return first is not None and first.ignores_batch() and all(part.ignores_batch() for part in known)


def _rounding(subject: Subject, batch: Batch, partition: Partition) -> float:
    """How much of the gradient is rounding, which differs for a multiple of the loss: 0 where it has none.

    A loss may count in less precision than its parameters have, as by automatic mixed precision.
    """
    try:
        error = algebra.axpy(subject.multiple_gradient(batch), -1.0, partition.whole)
    except Exception:  # a gradient by hand has no multiples
        return 0.0
    return float(algebra.norms(error)) / partition.size


def _check_weights(subject: Subject, batch: Batch, weights: NDArray[np.float64], stop: int) -> None:
    """Refuse weights that depend on the other examples, such as those that a batch is divided by."""
    if subject.weighting.function is None:
        return
    first, second = _parts(batch, weights, stop)
    parts = subject.weighting.of(first, stop), subject.weighting.of(second, len(weights) - stop)
    again = np.concatenate(parts)
    differing = np.flatnonzero(~np.isclose(again, weights, rtol=1e-4, atol=0))
    if differing.size:
        place = differing[0]
        raise WeightError(
            f"weights(batch) returned {weights[place]} for an example in a batch of {len(weights)}, and "
            f"{again[place]} for it in a part of {stop if place < stop else len(weights) - stop}"
        )


def _stops(weights: NDArray[np.float64], most: int) -> Iterator[int]:
    """Where to divide a batch: parts of about two and three fifths of what weighs anything."""
    sizes, before = np.arange(1, len(weights)), np.cumsum(weights > 0)
    inside = (before[:-1] > 0) & (before[:-1] < before[-1]) & (np.gcd(sizes, len(weights)) == 1)
    distance = np.abs(before[:-1] - 0.4 * before[-1])[inside]
    yield from sizes[inside][np.argsort(distance, kind="stable")[:most]].tolist()


def _rows_differ(batch: Batch) -> bool:
    for _, array in arrays_of(batch):
        values = algebra.to_numpy(array)
        if np.any(values[1:] != values[:1]):
            return True
    return False
