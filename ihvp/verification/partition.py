"""The gradients of a batch and of two parts of it: how far they fit, and what it means where they do not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ihvp import algebra
from ihvp.backend import Vector

# A combination of the parts that explains the whole may miss it by so many times the tolerance.
_LOOSE = 5.0

_WEIGHTS = (
    "Pass weights=…, a function weights(batch) -> (B,) of what the mean divides by, example by example; for "
    'tokens, weights=lambda batch: (batch["labels"] != -100).sum(1)'
)


@dataclass(frozen=True, eq=False)
class Partition:
    """The gradients of a batch and of two parts of it."""

    # whole, first, second: the gradients
    whole: Vector
    first: Vector
    second: Vector
    sizes: tuple[int, int]  # how many examples the parts have
    share: float  # what the first part weighs in the mean
    sum_declared: bool  # whether the loss is said to be a sum

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
    def remainder(self) -> float:
        """The same for the a and b that make it smallest."""
        vectors = (self.first, self.second)
        if not all(algebra.all_finite(vector) for vector in vectors):
            return math.nan
        lengths = [float(algebra.norms(vector)) or 1.0 for vector in vectors]
        cosine = float(algebra.dots(*vectors)) / math.prod(lengths)
        along = [float(algebra.dots(self.whole, g)) / n for g, n in zip(vectors, lengths, strict=True)]
        found = np.linalg.lstsq(np.array([[1.0, cosine], [cosine, 1.0]]), np.array(along), rcond=None)[0]
        return self._distance(*(float(a) / n for a, n in zip(found, lengths, strict=True)))

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
                "That of a part is not finite: a mean over nothing, as where labels are missing. "
                f"{_WEIGHTS}. That is 0 for those without labels."
            )
        loose = _LOOSE * allowed
        if not self.sum_declared and self._distance(1.0, 1.0) <= loose:
            return (
                "It is their sum: return the mean over the batch, or pass reduction='sum'. A sum must not be "
                "divided by a fixed number."
            )
        if self.sum_declared and self._distance(self.share, 1 - self.share) <= loose:
            return "It is their mean: pass reduction='mean', or return the sum over the batch."
        found, count = self._fitted_share(), sum(self.sizes)
        if 0 < found < 1 and self._distance(found, 1 - found) <= loose:
            mean = (
                "It is a mean; pass reduction='mean'. In it" if self.sum_declared else "It is a mean in which"
            )
            text = f"{mean} the first {self.sizes[0]} of {count} examples weigh {found:.2%}"
            plain = self.sizes[0] / count
            if weighted and self._distance(plain, 1 - plain) <= loose:
                return f"{text}, as their number says, and not {self.share:.2%}: leave weights= out."
            said = "the weights say" if weighted else "their number says"
            usual = "as a mean over tokens, or with class weights"
            return f"{text}, where {said} {self.share:.2%}: {usual}. {_WEIGHTS}."
        if self.sum_declared:
            return (
                "A sum must have no term that stays the same for a larger batch, such as a regulariser; nor "
                "may examples depend on each other, as by batch norm in training."
            )
        return (
            "Its examples depend on each other, as with negatives from the batch, or batch norm in training; "
            "or it is a sum with a term that stays the same for a larger batch, such as a regulariser. Call "
            "model.eval() (torch) or pass training=False (Keras), and return a mean; or keep all data in one "
            "batch, where products with ihvp.Hessian and ihvp.GaussNewton need no parts."
        )

    def _fitted_share(self) -> float:
        """The α with which ``α g₁ + (1 − α) g₂`` is nearest to g."""
        across = algebra.axpy(algebra.copy(self.first), -1.0, self.second)
        rest = algebra.axpy(algebra.copy(self.whole), -1.0, self.second)
        square = float(algebra.dots(across, across))
        return float(algebra.dots(across, rest)) / square if square else math.nan
