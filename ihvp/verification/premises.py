"""The premises of an objective: which have been checked, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from ihvp.backend import Batch, SupportsProductError, Vector
from ihvp.data import Piece
from ihvp.errors import WrongSecondDerivative
from ihvp.verification.additivity import compare_with_parts
from ihvp.verification.gradient import verified_gradient
from ihvp.verification.report import Check, Report
from ihvp.verification.second_derivative import compare_with_gradients
from ihvp.verification.subject import Subject

_GRADIENT = "The gradient is finite and the same twice"
_ADDITIVE = "A batch's gradient is that of its parts"
_SECOND = "The second derivative is that of the first"

# Where one batch in memory is cut into small pieces, so many of them are compared with their own parts.
_PIECES = 4
# So many batches are looked through for one that holds two examples.
_BATCHES = 16


class Premises:
    """The checks of one loss; objectives with the same loss share them.

    Parameters
    ----------
    enabled : bool
        Whether additivity and second derivatives are checked.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._gradient: Check | None = None
        self._additive: Check | None = None
        self._second: Check | None = None

    def elsewhere(self) -> Premises:
        """The same at other parameters, where second derivatives are others."""
        moved = Premises(self.enabled)
        moved._gradient, moved._additive = self._gradient, self._additive
        return moved

    @property
    def has_gradient(self) -> bool:
        """Whether the gradient has been checked."""
        return self._gradient is not None

    @property
    def needs_parts(self) -> bool:
        """Whether additivity is still to be checked."""
        return self.enabled and self._additive is None

    def report(self) -> Report:
        """What was checked so far."""
        return Report(
            self._gradient or Check(_GRADIENT, "not checked yet"),
            self._additive or self._unchecked(_ADDITIVE),
            self._second or self._unchecked(_SECOND),
        )

    def _unchecked(self, premise: str) -> Check:
        return Check(premise, "not checked yet" if self.enabled else "switched off")

    def verify(self, subject: Subject, batch: Batch) -> Vector | None:
        """Check the gradient of a batch, which is returned, unless that was done before.

        Raises
        ------
        LossNotScalar, LossIndependentOfParameters, NonFinite, NonDeterministicGradient
        """
        if self._gradient is not None:
            return None
        gradient = verified_gradient(subject, batch)
        self._gradient = Check(_GRADIENT, "passed")
        return gradient

    def require_additive(self, subject: Subject, pieces: Iterable[Piece]) -> None:
        """Check once that batches may be taken apart.

        Parameters
        ----------
        subject : Subject
        pieces : iterable of Piece
            The batches that the loss may see. Nothing is learnt from those of one example, nor settled.

        Raises
        ------
        LossNotAdditive, LossIgnoresBatch
        """
        if not self.needs_parts:
            return
        for piece in _of_two(pieces):
            batch = piece.take()
            if not subject.weighting.total(batch, piece.count):
                continue
            silent = compare_with_parts(subject, batch, self.verify(subject, batch))
            self._additive = Check(_ADDITIVE, "inconclusive" if silent else "passed", silent)

    def verify_second_derivative(self, subject: Subject, batch: Callable[[], Batch]) -> None:
        """Compare once a product of a batch, which ``batch()`` gives, with differences of gradients.

        Raises
        ------
        WrongSecondDerivative
        """
        if self._second is not None or not self.enabled:
            return
        if isinstance(subject.backend, SupportsProductError):
            self._second = Check(_SECOND, "not needed", "products are differences of gradients")
            return
        found = compare_with_gradients(subject.backend, subject.loss, subject.params, batch(), subject.space)
        if found.outcome == "wrong":
            raise WrongSecondDerivative(found.error, found.allowed, type(subject.backend).__name__)
        self._second = Check(_SECOND, found.outcome, found.why)


def _of_two(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Batches of at least two examples: of one batch in memory pieces from all over it, else the first."""
    for piece in islice(pieces, _BATCHES):
        size = max(piece.count, 2)
        if piece.rows < size:
            continue
        for number in range(min(_PIECES, piece.rows // size)):
            start = number * (piece.rows - size) // max(1, min(_PIECES, piece.rows // size) - 1)
            yield Piece(piece.batch, start, start + size, piece.rows)
        return
