"""The premises of an objective: which have been checked, and what came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ihvp.backend import Batch, SupportsProductError, Vector
from ihvp.data import Batches
from ihvp.errors import LossNotAdditive, WrongSecondDerivative
from ihvp.verification.additivity import compare_with_parts, value_difference
from ihvp.verification.gradient import verified_gradient
from ihvp.verification.probes import probes
from ihvp.verification.report import Check, Report
from ihvp.verification.second_derivative import compare_with_gradients
from ihvp.verification.subject import Subject

_GRADIENT = "The gradient is finite and the same twice"
_ADDITIVE = "A batch's gradient is that of its parts"
_SECOND = "The second derivative is that of the first"


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
        """Check the gradient of a batch, which is returned, unless that was done before."""
        if self._known.gradient is not None:
            return None
        gradient = verified_gradient(subject, batch)
        self._known.gradient = Check(_GRADIENT, "passed")
        return gradient

    def require_additive(self, subject: Subject, batches: Batches, *, any_weights: bool = False) -> bool:
        """Check once that batches may be taken apart.

        Batches in which fewer than two examples weigh anything settle nothing.

        The gradient of ``subject`` was checked before, unless one batch in memory is all there is.
        ``batches`` are those that the loss may see, in memory or a list. Where ``any_weights``, only the
        gradients of single examples are asked for, whatever they weigh in a batch. The result says whether it
        is settled.
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
