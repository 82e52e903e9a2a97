"""The premises of an objective: which have been checked, and what came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ihvp import algebra
from ihvp.backend import Batch, SupportsProductError, Vector
from ihvp.data import Batches
from ihvp.errors import (
    LossIndependentOfParameters,
    LossNotAdditive,
    NonDeterministicGradient,
    NonFinite,
    WrongSecondDerivative,
)
from ihvp.verification.additivity import compare_with_parts, value_difference
from ihvp.verification.probes import passes_on_sample, probes
from ihvp.verification.second_derivative import compare_with_gradients
from ihvp.verification.subject import Subject

_GRADIENT = "The gradient is finite and the same twice"
_ADDITIVE = "A batch's gradient is that of its parts"
_SECOND = "The second derivative is that of the first"

Outcome = Literal["passed", "inconclusive", "not needed", "not checked yet", "switched off"]


@dataclass(frozen=True)
class Check:
    """One premise.

    Attributes
    ----------
    premise : str
        What results rest on.
    outcome : str
        "passed", "inconclusive" (no statement is possible), "not needed", "not checked yet" (nothing has
        rested on it so far) or "switched off". A check that fails raises its error instead.
    why : str
        What was found, in a sentence.
    """

    premise: str
    outcome: Outcome
    why: str = ""

    def __str__(self) -> str:
        return f"{self.premise}: {self.outcome}" + (f" ({self.why})" if self.why else "")


@dataclass(frozen=True)
class Report:
    """The premises of an objective, by name; made by :meth:`ihvp.Objective.report`.

    Attributes
    ----------
    gradient : Check
        The loss is one finite scalar that depends on the parameters, with the same gradient twice.
    additive : Check
        A batch's gradient is the weighted mean, or the declared sum, of the gradients of its parts.
    second_derivative : Check
        The framework's second derivative is that of its first.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> objective = ihvp.Objective(params=np.ones(2), grad=lambda w, batch: 2 * w)
    >>> gradient = objective.gradient()
    >>> objective.report().gradient.outcome
    'passed'
    """

    gradient: Check
    additive: Check
    second_derivative: Check

    def __str__(self) -> str:
        return "\n".join(str(check) for check in (self.gradient, self.additive, self.second_derivative))


@dataclass
class _Known:
    """What was found of a loss, wherever its parameters are."""

    gradient: Check | None = None
    additive: Check | None = None
    separate: bool = False
    values: bool = False


class Premises:
    """The checks of one loss; objectives with the same loss share them.

    Additivity and second derivatives are checked where ``enabled``.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._known = _Known()
        self._second: Check | None = None

    def elsewhere(self) -> Premises:
        """Those of the same loss at other parameters, where second derivatives are others."""
        moved = Premises(self.enabled)
        moved._known = self._known
        return moved

    @property
    def has_gradient(self) -> bool:
        """Whether the gradient has been checked."""
        return self._known.gradient is not None

    @property
    def needs_parts(self) -> bool:
        """Whether additivity is still to be checked."""
        return self.enabled and self._known.additive is None

    def report(self) -> Report:
        """What was checked so far."""
        return Report(
            self._known.gradient or Check(_GRADIENT, "not checked yet"),
            self._known.additive or self._unchecked(_ADDITIVE),
            self._second or self._unchecked(_SECOND),
        )

    def _unchecked(self, premise: str) -> Check:
        return Check(premise, "not checked yet" if self.enabled else "switched off")

    def verify(self, subject: Subject, batch: Batch) -> Vector | None:
        """Check the gradient of a batch, which is returned unless a sample or an earlier check was enough."""
        if self._known.gradient is not None:
            return None
        gradient = None
        if not passes_on_sample(batch, lambda part: _verified_gradient(subject, part) is not None):
            gradient = _verified_gradient(subject, batch)
        self._known.gradient = Check(_GRADIENT, "passed")
        return gradient

    def require_additive(self, subject: Subject, batches: Batches, *, any_weights: bool = False) -> bool:
        """Check once that batches may be taken apart; the result says whether it is settled.

        The gradient of ``subject`` was checked before, unless one batch in memory is all there is.
        ``batches`` are those that the loss may see, in memory or a list: those in which fewer than two
        examples weigh anything settle nothing. Where ``any_weights``, only the gradients of single examples
        are asked for, whatever they weigh in a batch.
        """
        if not self.needs_parts or (any_weights and self._known.separate):
            return True
        said = set()
        for batch in probes(batches):
            whole = self.verify(subject, batch) if batch is batches.data else None
            why = compare_with_parts(subject, batch, whole, any_weights=any_weights)
            said |= set() if why is None else {why}
        if said and any_weights:
            self._known.separate = True
        elif said:
            self._known.additive = Check(_ADDITIVE, "inconclusive" if all(said) else "passed", min(said))
        return bool(said)

    @property
    def needs_values(self) -> bool:
        """Whether it is still to be checked that the values of batches add up."""
        return self.needs_parts and not self._known.values

    def require_additive_values(
        self, subject: Subject, batches: Batches, evaluate: Callable[[Batch], Any]
    ) -> None:
        """Check once that the values of batches add up, which need no gradient.

        ``evaluate`` gives the loss of a batch.
        """
        for batch in probes(batches):
            difference = value_difference(subject, batch, evaluate)
            if difference > subject.space.product_eps**0.5:
                self._explain(difference, subject, batches)
        self._known.values = True

    def _explain(self, difference: float, subject: Subject, batches: Batches) -> None:
        """What gradients tell about a difference of values: its cause, or that it is rounding."""
        try:
            self.require_additive(subject, batches)
        except LossNotAdditive:
            raise
        except Exception as error:  # a loss without a gradient has values all the same
            raise LossNotAdditive(difference, subject.declared, "So do its values.") from error

    def verify_second_derivative(self, subject: Subject, batch: Callable[[], Batch]) -> None:
        """Compare once a product of a batch, which ``batch()`` gives, with differences of gradients."""
        if self._second is not None or not self.enabled:
            return
        if isinstance(subject.backend, SupportsProductError):
            self._second = Check(_SECOND, "not needed", "products are differences of gradients")
            return
        found = compare_with_gradients(subject.backend, subject.loss, subject.params, batch(), subject.space)
        if found.outcome == "wrong":
            raise WrongSecondDerivative(found.error, found.allowed, type(subject.backend).__name__)
        self._second = Check(_SECOND, found.outcome, found.why)


def _verified_gradient(subject: Subject, batch: Batch) -> Vector:
    """The gradient of a batch, checked by a second one: finite, the same twice, not identically zero."""
    one, two = subject.gradient(batch), subject.gradient(batch)
    with np.errstate(invalid="ignore"):  # infinite entries are named below
        two, *parts = _subtracted(two, one)
    size, difference = (float(algebra.norms(x, part)) for x, part in zip((one, two), parts, strict=True))
    if not np.isfinite(size):
        raise NonFinite("The gradient", 0)
    difference = difference if np.isfinite(difference) else np.inf
    del two
    # Parallel sums may differ in their last bits from call to call; dropout differs by far more.
    allowed = subject.space.product_eps**0.5
    if difference <= allowed * size and size > 0:
        return one
    # At an optimum the gradient is as small as its own rounding, or zero: its size elsewhere tells.
    size = float(algebra.norms(subject.nearby(1.0).gradient(batch)))
    if size == 0.0:  # as where every margin is kept
        sizes = (float(algebra.norms(point.gradient(batch))) for point in subject.far())
        size = next((size for size in sizes if size), 0.0)
    if size == 0.0:
        raise LossIndependentOfParameters(
            "its gradient on batch 0 is exactly zero, here and at random points"
        )
    if difference > allowed * size:
        raise NonDeterministicGradient(difference / size, allowed)
    return one


@algebra.fused(0)
def _subtracted(two: Vector, one: Vector) -> tuple[Vector, Any, Any]:
    """``two − one``, and the parts of what the norms of ``one`` and of it sum up."""
    difference = algebra.axpy(two, -1.0, one)
    return difference, algebra.dot_parts(one, one), algebra.dot_parts(difference, difference)
