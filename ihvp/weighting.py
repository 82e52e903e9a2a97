"""What the examples of a batch weigh in the mean over the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Batch, Vector
from ihvp.errors import IhvpError, WeightError, describe

Weights = Callable[[Batch], Any]
"""``weights(batch)``: one number ≥ 0 for each example, ``(B,)``."""


@dataclass(frozen=True)
class Weighting:
    """The weights of examples; each weighs 1 where there is no function.

    >>> import numpy as np
    >>> weighting = Weighting(lambda batch: batch["mask"].sum(axis=1))
    >>> batch = {"mask": np.array([[1, 1, 0], [0, 0, 0]])}
    >>> weighting.of(batch, 2), weighting.total(batch, 2)
    (array([2., 0.]), 2.0)
    """

    function: Weights | None = None  # weights(batch) -> (B,), in any array type

    def of(self, batch: Batch, count: int) -> NDArray[np.float64]:
        """The weights of the examples of a batch, ``(count,)``.

        A WeightError says that the function failed, or returned something else than one finite number ≥ 0 for
        each example.
        """
        if self.function is None:
            return np.ones(count)
        try:
            found = self.function(batch)
        except Exception as error:
            raise WeightError(f"weights(batch) failed with {type(error).__name__}: {error}") from error
        values = _numbers(found)
        if values is None:
            raise WeightError(f"weights(batch) returned {describe(found)}")
        if values.shape != (count,):
            raise WeightError(f"weights(batch) returned shape {values.shape} for {count} examples")
        wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if wrong.size:
            raise WeightError(
                f"weights(batch) returned {values[wrong[0]]} for example {wrong[0]} of the batch"
            )
        return values

    def total(self, batch: Batch, count: int) -> float:
        """The sum of the weights of a batch; the number of examples, an int, where each weighs 1."""
        return count if self.function is None else float(self.of(batch, count).sum())


def _numbers(found: Any) -> NDArray[np.float64] | None:
    """The real numbers in an array of any framework, or a list; None where it is something else."""
    try:
        plain = algebra.as_numpy(found)
        return None if found is None or plain.dtype.kind in "cSUMm" else plain.astype(np.float64)
    except IhvpError:
        raise
    except Exception:  # whatever it is, it is no numbers
        return None


def scale_rows(rows: Vector, factors: NDArray[np.float64]) -> Vector:
    """Rows times factors, ``(B, …)``; exact zeros where a factor is 0, whatever the row holds.

    The loss of an example that weighs nothing may be the quotient of two zeros.
    """
    xp = array_api_compat.array_namespace(rows)
    shape = (-1, *[1] * (rows.ndim - 1))
    counts = xp.reshape(xp.asarray(factors != 0, device=algebra.device(rows)), shape)
    multiples = xp.reshape(algebra.as_like(factors, rows), shape)
    return xp.where(counts, rows, xp.zeros_like(rows)) * multiples
