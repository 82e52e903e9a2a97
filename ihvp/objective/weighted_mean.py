"""Means of per-batch quantities over weighted examples, on premises that are checked once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.arguments import naming
from ihvp.backend import Batch, CurvatureBackend, Params, Vector
from ihvp.contents import Contents
from ihvp.data import Batches
from ihvp.errors import DataError, EmptyData, LossFailed, NonFinite, NotReiterable, WeightError, describe
from ihvp.processes import Processes, together
from ihvp.space import VectorSpace
from ihvp.verification import Premises, Subject, adds_up_on_sample
from ihvp.weighting import Weighting

# So many batches of a loader are looked at.
_AT_HAND = 4

Term: TypeAlias = "tuple[Vector, int, float]"
"""A quantity of a batch, its number of examples, and what they weigh; the first is None where that is 0."""


class WeightedMean:
    """What an objective sums over, and how."""

    params: Params
    batches: Batches  # the data
    reduction: str  # "mean" or "sum": what the loss does over a batch
    weighting: Weighting  # what the examples weigh
    loss: Any  # as the backend takes it
    backend: CurvatureBackend
    space: VectorSpace  # of the parameters

    _num_examples: int | None
    _counts: NDArray[np.int64] | None
    _total_weight: float | None
    _overall_weight: float | None
    _mean_weight: float | None
    _premises: Premises
    _adding_up: dict[int, bool]
    _without_parts: Batches | None
    _agreed: bool
    _alone: bool  # whether each process has all of the data

    @property
    def processes(self) -> Processes:
        """Those that the data is spread over."""
        return Processes() if self._alone else self.space.processes

    @property
    def num_examples(self) -> int:
        """N, the number of examples of this process; counted over the data on first use."""
        if self._num_examples is None:
            self._num_examples = sum(count for _, count in self.batches)
        return self._num_examples

    @property
    def total_weight(self) -> float:
        """The sum of the weights of the examples of this process; their number where each weighs 1."""
        if self.weighting.function is None:
            return self.num_examples
        if self._total_weight is None:
            self._total_weight = float(
                sum(self.weighting.total(batch, count) for batch, count in self.batches)
            )
        return self._total_weight

    @property
    def mean_weight(self) -> float:
        """W / N over all the processes that the data is spread over; 1 where each example weighs 1."""
        if self.weighting.function is None:
            return 1.0
        if self._mean_weight is None:
            self._mean_weight = self._positive(self.overall_weight) / self.total_examples
        return self._mean_weight

    @property
    def counts(self) -> NDArray[np.int64]:
        """The number of examples of each process, by rank; to be asked by all of them at once."""
        if self._counts is None:
            self.agree()
            self._counts = self.processes.each(self.num_examples)
            if not self._counts.any():
                raise EmptyData("No process has an example; expected at least one.")
        return self._counts

    def require_examples(self) -> None:
        """Refuse, in all processes, that one has no example to see what examples consist of."""
        if not self.counts.all():
            without = ", ".join(map(str, np.flatnonzero(self.counts == 0)))
            raise EmptyData(
                f"The process of rank {without} has no example; expected at least one in each, which shows "
                "what examples consist of. Spread the data evenly, or over fewer processes."
            )

    @property
    def total_examples(self) -> int:
        """N over all the processes that the data is spread over; to be asked by all of them at once."""
        return int(self.counts.sum())

    @property
    def first(self) -> int:
        """The number of the first example of this process among all; to be asked by all of them at once."""
        return int(self.counts[: self.processes.rank].sum())

    @property
    def overall_weight(self) -> float:
        """W, the sum of the weights over all processes; to be asked by all of them at once."""
        if self.weighting.function is None:
            return self.total_examples
        if self._overall_weight is None:
            self._overall_weight = float(self.processes.each(float(self.total_weight)).sum())
        return self._overall_weight

    @together
    def mean(
        self,
        term: Callable[[Batch], Vector],
        what: str,
        terms: Iterable[Term] | None = None,
        zeros: Callable[[], Vector] | None = None,
        *,
        checked: bool = True,
    ) -> Vector:
        """``1/W Σ`` of a per-batch quantity, with the weights that make it the mean over examples.

        Parameters
        ----------
        term : callable
            Takes a batch, gives a vector or block that is freshly allocated: the mean (or sum) over it.
        what : str
            What is computed, for the error text.
        terms : iterable of Term, optional
            The same over all the data, computed in another way.
        zeros : callable, optional
            What a process adds whose examples weigh nothing: by default a zero vector.
        checked : bool
            Whether the result is looked at for what is not finite.

        Raises
        ------
        NonFinite
            With the index of the batch.
        DataError
            The data gave another number of examples than before.
        WeightError
            No example weighs anything, or all together weigh something else than before.
        """
        self.agree()
        total: Vector = None
        largest: float = 0
        weight: float = 0
        examples = 0
        if terms is None:
            terms = self._terms(term)
        else:
            self.verify()
        with naming(LossFailed, what):
            for part, count, share in terms:
                examples += count
                weight += share
                if not share:
                    continue
                # Weights relative to the largest batch: exactly 1 for uniform batches.
                if total is None:
                    total, largest = part, share
                elif self.reduction == "sum":
                    total = algebra.axpy(total, 1.0, part)
                elif share <= largest:
                    total = algebra.axpy(total, share / largest, part)
                else:
                    total, largest = algebra.axpy(algebra.scale(total, largest / share), 1.0, part), share
        self._check_count(examples)
        self._check_weight(weight)
        unit = largest if self.reduction == "mean" else 1
        weight = self._positive(self.overall_weight)
        _ = self.counts  # now, when all processes are here: later only those with examples may ask
        if total is None:
            total = self.space.zeros() if zeros is None else zeros()
        total = self.processes.reduce(total if unit == weight else total * (unit / weight))
        if checked and not algebra.all_finite(total):
            self._raise_non_finite(term, what)
        return total

    def agree(self) -> None:
        """Check once that all processes have the same model and loss; to be called by all of them at once.

        ProcessesDiffer says what is not the same.
        """
        if self._agreed or self.processes.count == 1 or not self._premises.enabled:
            return
        contents = Contents()
        # What averages the gradients of a training holds the model, and the device of its process.
        model = getattr(self.params, "module", self.params)
        digests = {
            "the model or its parameters": contents.digest(model),
            "the loss": contents.digest(self.loss),
            "the weights": contents.digest(self.weighting.function),
            "the reduction": contents.digest(self.reduction),
        }
        self.processes.require_same(digests)
        self._agreed = True

    def _positive(self, weight: float) -> float:
        if not weight > 0:
            raise WeightError("The weights of all examples are 0")
        return weight

    def _terms(self, term: Callable[[Batch], Vector]) -> Iterator[Term]:
        first: Batch = None
        for number, (batch, count) in enumerate(self._pass()):
            share = self.weighting.total(batch, count)
            if share:
                self._verify_on(batch)
            if number == 0:
                first = batch
            elif self._premises.needs_parts:
                self.require_additive(first, batch)
            yield term(batch) if share else None, count, share

    def _pass(self) -> Iterator[tuple[Batch, int]]:
        try:
            yield from self.batches
        except EmptyData as error:
            if self._num_examples is None:
                raise
            raise NotReiterable(describe(self.batches.data)) from error

    def _check_count(self, examples: int) -> None:
        if self._num_examples is None:
            self._num_examples = examples
        elif examples != self._num_examples:
            raise DataError(
                f"The data gave {self._num_examples} examples at first and {examples} now; expected the same "
                "data at every pass. Pass a list of batches, or drop sampling from the loader."
            )

    def _check_weight(self, weight: float) -> None:
        if self.weighting.function is None:
            return
        if self._total_weight is None:
            self._total_weight = weight
        elif not math.isclose(weight, self._total_weight, rel_tol=1e-6):
            raise WeightError(f"The weights add up to {self._total_weight} at first and to {weight} now")

    def _raise_non_finite(self, term: Callable[[Batch], Vector], what: str) -> None:
        for index, (batch, count) in enumerate(self.batches):
            if self.weighting.total(batch, count) and not algebra.all_finite(term(batch)):
                raise NonFinite(what, index)
        raise NonFinite(what)

    def adds_up(self, batch_size: int) -> bool:
        """Whether data that is one batch in memory may be cut: its gradient is the mean over the pieces.

        It is not for a loss that compares examples with each other, or that divides by anything but their
        number, or whose data is no list of examples.
        """
        if batch_size not in self._adding_up:
            self._adding_up[batch_size] = self._compare_with_pieces(batch_size)
        return self._adding_up[batch_size]

    def _compare_with_pieces(self, batch_size: int) -> bool:
        if adds_up_on_sample(self._subject, self.batches.data):
            return True
        difference = self.backend.grad(self.loss, self.params, self.batches.data)
        size = 0.0
        try:
            for piece, count in Batches(self.batches.data, batch_size):
                share = self.weighting.total(piece, count)
                if not share:
                    continue
                part = self.backend.grad(self.loss, self.params, piece)
                weight = share / self.total_weight if self.reduction == "mean" else 1.0
                size += weight * float(algebra.norms(part))
                difference = algebra.axpy(difference, -weight, part)
        except Exception:  # what a loss raises on rows that are no examples is its own
            return False
        # At an optimum the parts cancel: it is them that the difference is small against.
        return bool(algebra.norms(difference) <= self.space.product_eps**0.5 * size)

    def verify(self) -> None:
        """Check once that the loss has a gradient: finite, the same twice, not identically zero.

        Raises LossNotScalar, LossIndependentOfParameters, NonFinite or NonDeterministicGradient.
        """
        if not self._premises.has_gradient and self._weighs_here():
            self._verify_on(self._first_batch())

    def require_additive(self, *at_hand: Batch, any_weights: bool = False) -> None:
        """Check once that the gradient of a batch is the weighted mean, or the sum, of those of its parts.

        Of data that is neither in memory nor a list, some batches may be ``at_hand``; by default its first
        ones are taken. Where ``any_weights``, any combination of the parts will do, in place of the declared
        one: gradients of single examples need no more. Raises LossNotAdditive, LossIgnoresBatch, and those of
        :meth:`verify`.
        """
        if not self._premises.needs_parts or self._without_parts is self.batches or self._is_empty():
            return
        batches = self._batches_at_hand(at_hand)
        if not (batches.in_memory and batches.batch_size is None):
            self.verify()
        with naming(LossFailed, "The gradient of a part of a batch"):
            learnt = self._premises.require_additive(self._subject, batches, any_weights=any_weights)
        if not learnt and batches is self.batches:
            self._without_parts = batches

    def _batches_at_hand(self, at_hand: tuple[Batch, ...]) -> Batches:
        """What premises are checked on: of data that may be slow to come, a few batches."""
        if self.batches.lasting:
            return self.batches
        return replace(self.batches, data=list(at_hand or islice(self.batches.data, _AT_HAND)))

    def _is_empty(self) -> bool:
        """Whether this process has no example, of those that others have."""
        return self.batches.may_be_empty and next(self.batches.pieces(), None) is None

    def verify_second_derivative(self) -> None:
        """Compare once a product with the Hessian with differences of gradients, on the first batch.

        Raises WrongSecondDerivative, and those of :meth:`verify`.
        """
        self.verify()
        if self._weighs_here():
            with naming(LossFailed, "A product with the Hessian"):
                self._premises.verify_second_derivative(self._subject, self._first_batch)

    @property
    def _subject(self) -> Subject:
        return Subject(self.backend, self.loss, self.params, self.space, self.reduction, self.weighting)

    def _weighs_here(self) -> bool:
        """Whether any example of this process weighs anything."""
        if self.weighting.function is None:
            return not self._is_empty()
        if any(self.weighting.total(*pair) for pair in self.batches):
            return True
        if self.processes.count > 1:
            return False  # another process may have some; what all add up to is checked where it is needed
        raise WeightError("The weights of all examples are 0")

    def _first_batch(self) -> Batch:
        """The first batch that weighs anything."""
        for batch, count in self.batches:
            if self.weighting.total(batch, count):
                return batch
        raise WeightError("The weights of all examples are 0")

    def _verify_on(self, batch: Batch) -> None:
        if not self._premises.has_gradient:
            with naming(LossFailed, "The gradient"):
                self._premises.verify(self._subject, batch)
