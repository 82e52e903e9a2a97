"""Curvature matrices that are means over the data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from ihvp import algebra
from ihvp.arguments import check_instance
from ihvp.backend import Batch, FusibleAtBatches, Matvec, Vector
from ihvp.data import Batches, Examples, as_data
from ihvp.errors import InvalidOption, NonFinite, TracedValue, VectorError
from ihvp.objective import Objective, Term
from ihvp.operators.base import LinearOperator, Measure, Sampler, combined, owned


class CurvatureOperator(LinearOperator):
    r"""A matrix :math:`\frac{1}{W} \sum_n w_n M_n` over the examples of an objective.

    A subclass says what one batch contributes. Products belong to the parameters as they are at the time.

    Parameters
    ----------
    objective : Objective
        The loss, its parameters and its data.

    Examples
    --------
    The second moment of the data, which does not depend on the parameters:

    >>> import numpy as np
    >>> import ihvp
    >>> class SecondMoment(ihvp.operators.CurvatureOperator):
    ...     def batch_product(self, x, v):
    ...         return x.T @ (x @ v) / len(x)
    >>> x = np.array([[1.0, 0.0], [1.0, 2.0]])
    >>> objective = ihvp.Objective(params=np.zeros(2), data=x, grad=lambda w, x: x.mean(axis=0) + w)
    >>> SecondMoment(objective) @ np.array([1.0, 1.0])
    array([2., 3.])
    """

    _traceable = False  # whether batch_product takes vectors that JAX traces

    def __init__(self, objective: Objective) -> None:
        check_instance("objective", objective, Objective, "an ihvp.Objective")
        super().__init__(objective.space)
        self.objective = objective

    def in_range(self, product: Matvec, v: Vector) -> Vector:
        """``product(v)``; of ``v`` in the middle of the range of parameters in half precision."""
        if self.space.product_eps == self.space.eps:
            return product(v)
        sizes, v = algebra.scaled(v)
        result = product(v)
        return algebra.scale(result, algebra.coefficients(sizes, result))

    @abstractmethod
    def batch_product(self, batch: Batch, v: Vector) -> Vector:
        """The mean ``Σ wₙ Mₙ v / Σ wₙ`` over a batch, or the sum ``Σ wₙ Mₙ v``, freshly allocated.

        Which one, the objective's reduction says. It is not called for batches that weigh nothing.
        """

    def terms(self, v: Vector) -> Iterator[Term] | None:
        """What :meth:`batch_product` gives over all the data, part by part.

        None where the products of single batches are the fastest way to it.
        """
        return None

    def verify(self) -> None:
        self.objective.verify()

    def apply(self, v: Vector) -> Vector:
        try:
            return self.in_range(self._mean_product, v)
        except NonFinite as error:
            if not algebra.all_finite(v):
                raise VectorError("v holds NaN or infinite entries; expected finite ones.") from error
            raise

    def measured(self, v: Vector, measure: Measure | None = None, shift: float = 0.0) -> tuple[Vector, Any]:
        if measure is not None:
            # What is measured tells whether all is finite, and spares another pass.
            product, parts = algebra.shifted(self._unchecked(v), v, 1.0, shift, measure)
            if np.all(np.isfinite(algebra.to_numpy(parts))):
                return product, parts
        return super().measured(v, measure, shift)

    def followed_by(
        self, function: Callable[..., Any], v: Vector, *arguments: Any, fixed: Hashable = None
    ) -> Any:
        return function(self._unchecked(v), v, *arguments, fixed)

    def _unchecked(self, v: Vector) -> Vector:
        """A product to write to, which may not be finite."""
        if type(self).apply is not type(self)._plain_apply:
            return owned(self.apply(v), v)
        return owned(self.in_range(partial(self._mean_product, checked=False), v), v)

    _plain_apply = apply  # a subclass with another one has its own reasons

    def apply_traced(self, v: Vector) -> Vector:
        objective = self.objective
        with algebra.outside_traces():
            # What is read of the data, and checked, is no part of the program.
            if (
                not self._traceable
                or objective.processes.count > 1
                or self.space.product_eps != self.space.eps
            ):
                raise TracedValue("v")
            self.verify()
            objective.require_additive()
            batches = [(batch, objective.weighting.total(batch, count)) for batch, count in objective.batches]
            whole = objective.overall_weight
        factors = [weight if objective.reduction == "mean" else 1.0 for _, weight in batches]
        return sum(
            factor / whole * self.batch_product(batch, v)
            for (batch, weight), factor in zip(batches, factors, strict=True)
            if weight
        )

    def _mean_product(self, v: Vector, checked: bool = True) -> Vector:
        return self.objective.mean(
            lambda batch: self.batch_product(batch, v),
            self._what,
            self.terms(v),
            lambda: algebra.zeros_like(v),
            checked=checked,
        )

    def sampler(self, batch_size: int, *, replace: bool = True) -> Sampler | None:
        """Means of ``N wₙ / W Mₙ`` over batches of examples, drawn uniformly from all the data.

        Data in memory is shared; data that comes in batches is read once and joined. Where it is spread over
        processes, each draws a batch from its own part.
        """
        if self.objective.batches.data is None:
            return None
        examples, processes = Examples.of(self.objective.batches), self.objective.processes
        least = int(processes.each(examples.count).min())
        if batch_size > least:
            of = " of the process that has the fewest" if processes.count > 1 else ""
            raise InvalidOption("batch_size", batch_size, f"at most {least}, the number of examples{of}")
        own = self.objective.on(as_data(examples.batch))
        own.require_additive()
        # With n the examples of this process and W the weight of all of them: n/W (1/b) Σ wₙ Mₙ over a batch.
        share = examples.count / (own.mean_weight * own.total_examples)

        def without_replacement(generator: np.random.Generator) -> Batch:
            return examples.rows(generator.choice(examples.count, size=batch_size, replace=False))

        draw = examples.draws(batch_size) if replace else without_replacement
        last: np.random.Generator | None = None
        means: _BatchMeans

        def drawn(generator: np.random.Generator) -> LinearOperator:
            # Another generator begins another solve, before which parameters may have been replaced.
            nonlocal last, means
            if generator is not last:
                last, means = generator, _BatchMeans(self, self._batch_products(), batch_size, share)
            return _BatchMean(means, draw(generator))

        return drawn

    def _batch_products(self) -> Callable[[Batch, Vector], Vector]:
        """:meth:`batch_product` for many batches at the present parameters."""
        return self.batch_product

    def _dense_mean(self, batch_matrix: Callable[[Batch], Vector]) -> Vector:
        """The matrix of the matrices of batches: products with the identity would make their rows again."""
        self._announce_dense()
        size = self.space.size
        return self.objective.mean(batch_matrix, self._what, zeros=lambda: self.space.zeros(size))

    @property
    def _what(self) -> str:
        return f"A product with the {type(self).__name__}"


class _BatchMeans:
    """What the means of ``M_n`` over batches of ``count`` examples have in common during a solve."""

    def __init__(
        self,
        operator: CurvatureOperator,
        product: Callable[[Batch, Vector], Vector],
        count: int,
        share: float,
    ) -> None:
        self.operator, self.product, self.count, self.share = operator, product, count, share
        objective, space = operator.objective, operator.space
        self.limit = objective.batches.batch_size or count
        # Whether a mean is a multiple of one product, and more is compiled with that.
        self.fusible: FusibleAtBatches | None = None
        kind: object = product
        one = self.limit >= count and objective.weighting.function is None and objective.processes.count == 1
        if one and space.product_eps == space.eps and isinstance(kind, FusibleAtBatches):
            self.fusible = kind

    def factor(self, weight: float) -> float:
        """Of the product of a piece. ``reduction="sum"`` has the factor ``weight`` in the product already."""
        mean = self.operator.objective.reduction == "mean"
        return (weight if mean else 1) / self.count * self.share

    def pieces(self, batch: Batch) -> Iterable[tuple[Batch, int]]:
        """The batch, in parts of the objective's ``batch_size``."""
        return [(batch, self.count)] if self.limit >= self.count else Batches(as_data(batch), self.limit)


class _BatchMean(LinearOperator):
    """The mean of ``M_n`` over one batch; unchecked, as one of very many products that a method sums."""

    def __init__(self, means: _BatchMeans, batch: Batch) -> None:
        super().__init__(means.operator.space)
        self._means, self._batch = means, batch

    def apply(self, v: Vector) -> Vector:
        return self._means.operator.in_range(self._mean_product, v)

    def followed_by(
        self, function: Callable[..., Any], v: Vector, *arguments: Any, fixed: Hashable = None
    ) -> Any:
        fusible = self._means.fusible
        if fusible is None:
            return super().followed_by(function, v, *arguments, fixed=fixed)
        factor = self._means.factor(self._means.count)
        return fusible.then(combined, self._batch, v, factor, 0.0, *arguments, fixed=(function, fixed))

    def _mean_product(self, v: Vector) -> Vector:
        objective, total = self._means.operator.objective, None
        for piece, count in self._means.pieces(self._batch):
            weight = objective.weighting.total(piece, count)
            if not weight:
                continue
            factor, part = self._means.factor(weight), self._means.product(piece, v)
            if total is None:
                total = part if factor == 1.0 else factor * part
            else:
                total = algebra.axpy(total, factor, part)
        return objective.processes.reduce(algebra.zeros_like(v) if total is None else total)
