"""The gradients of single examples, each with its weight."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ihvp.arguments import naming
from ihvp.backend import Batch, SupportsPerExampleGrads, Vector
from ihvp.data import count_examples, take_examples
from ihvp.errors import LossFailed
from ihvp.objective.weighted_mean import WeightedMean
from ihvp.weighting import scale_rows

# Per-example gradients are made in chunks of at most this many numbers (256 MiB in float32).
_CHUNK_NUMBERS = 1 << 26


class ExampleGradients(WeightedMean):
    """A mean whose examples can be told apart."""

    def batch_gradient_chunks(
        self, batch: Batch, *, power: float = 1.0, rows: int | None = None
    ) -> Iterator[Vector]:
        r"""The gradients of the examples of one batch in blocks ``(b, P)``, not checked for NaN.

        Row n is :math:`(N w_n / W)^{power} \, \nabla C_n`, and 0 where :math:`w_n = 0`: the ``power`` 1 gives
        the rows that average to the gradient, 0 the gradients of the examples alone, and 1/2 those whose
        outer products average to the :class:`~ihvp.OPG`. A block has at most ``rows``, by default as many as
        keep its memory bounded.
        """
        self.require_additive(batch, any_weights=power == 0)
        count = count_examples(batch)
        if rows is None:
            rows = max(1, _CHUNK_NUMBERS // self.space.size)
        weights = self.weighting.of(batch, count)
        for start in range(0, count, rows):
            stop = min(start + rows, count)
            piece = take_examples(batch, start, stop) if rows < count else batch
            with naming(LossFailed, "The gradient of a single example"):
                gradients = self._example_gradients(piece, weights[start:stop])
            if self.weighting.function is not None:
                gradients = scale_rows(gradients, self._row_factors(weights[start:stop], power))
            yield gradients

    def scale_examples(self, quantities: Vector, batch: Batch) -> Vector:
        """Derivatives of the loss of each example as a batch of its own, ``(B, …)``, times ``N wₙ / W``."""
        if self.weighting.function is None:
            return quantities
        weights = self.weighting.of(batch, count_examples(batch))
        return scale_rows(quantities, self._row_factors(weights, 1.0))

    def relative_weights(self, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        """The factor of each example's own loss in that of its batch, ``(B,)``, and what the batch counts."""
        unit = float(weights.sum()) if self.reduction == "mean" else 1.0
        return weights / unit, unit

    def part_factors(self, batch: Batch, power: float) -> NDArray[np.float64]:
        """By what the part of each example in its batch's gradient is multiplied to be its row, ``(B,)``.

        ``power`` is that of :meth:`batch_gradient_chunks`.
        """
        weights = self.weighting.of(batch, count_examples(batch))
        factors = self._row_factors(weights, power)
        if self.reduction == "mean":
            factors = np.divide(
                factors * weights.sum(), weights, where=weights > 0, out=np.zeros_like(weights)
            )
        return factors

    def _row_factors(self, weights: NDArray[np.float64], power: float) -> NDArray[np.float64]:
        """What the derivative of the loss of one example is multiplied by."""
        # Gradients of examples alone do not ask what others weigh, which may be nothing.
        relative = weights / self.mean_weight if power else weights
        factors = np.where(weights > 0, relative**power, 0.0)
        # As a sum, the loss of one example has its weight in it already.
        return (
            np.divide(factors, weights, where=weights > 0, out=factors)
            if self.reduction == "sum"
            else factors
        )

    def _example_gradients(self, batch: Batch, weights: NDArray[np.float64]) -> Vector:
        if isinstance(self.backend, SupportsPerExampleGrads):
            return self.backend.per_example_grads(self.loss, self.params, batch)
        count = len(weights)
        rows = [
            self.backend.grad(self.loss, self.params, take_examples(batch, i, i + 1) if count > 1 else batch)
            if weights[i]
            else self.space.zeros()
            for i in range(count)
        ]
        return self.space.xp.stack(rows, axis=0)
