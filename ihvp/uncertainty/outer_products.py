"""What the gradients of examples, or of clusters of them, scatter by: the middle of the sandwich."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.errors import InvalidOption
from ihvp.influence.checks import check_order
from ihvp.memory import require_memory
from ihvp.objective import Objective
from ihvp.operators import OPG, LinearOperator


class OuterProducts(OPG):
    """``1/N Σ r rᵀ`` of the rows that average to the gradient: an example's weight belongs to its draw."""

    _power = 1.0


class ClusteredOuterProducts(LinearOperator):
    """``1/N Σ s sᵀ`` of the sums s of these rows over clusters of examples, ``(clusters, P)``."""

    def __init__(self, objective: Objective, clusters: ArrayLike | Sequence[Any]) -> None:
        super().__init__(objective.space)
        codes = _codes(objective, clusters)
        self.examples, self.count = codes.size, int(codes.max()) + 1
        space, what = objective.space, f"The sums of gradients over {self.count:,} clusters"
        require_memory(space, self.count * space.size, 3 * space.itemsize, what, "Take fewer clusters.")
        check_order(objective.batches, "training")
        sums, first = np.zeros((self.count, space.size)), 0
        for rows in objective.per_example_gradient_chunks():
            own = codes[first : first + len(rows)]
            first += len(rows)
            # Column j of this matrix says to which cluster row j goes.
            places = csr_array((np.ones(own.size), (own, np.arange(own.size))), (self.count, own.size))
            sums += places @ algebra.to_numpy(rows)
        self.sums = space.asarray(sums.astype(algebra.to_numpy(space.zeros(1)[:0]).dtype))

    def apply(self, v: Vector) -> Vector:
        return self.sums.T @ (self.sums @ v) / self.examples

    def to_dense(self) -> Vector:
        self._announce_dense()
        return self.sums.T @ self.sums / self.examples


def _codes(objective: Objective, clusters: Any) -> NDArray[np.intp]:
    """The number of each example's cluster."""
    expected = "a label for each example, in the order of the data"
    if objective.processes.count > 1:
        raise InvalidOption("clusters", clusters, "None, where the data is spread over processes")
    try:
        labels = np.asarray(clusters)
        missing = labels != labels
        names, codes = np.unique(labels, return_inverse=True)
    except (TypeError, ValueError) as error:  # lists of unequal lengths, labels of kinds that do not compare
        raise InvalidOption("clusters", clusters, expected) from error
    if labels.shape != (objective.num_examples,):
        raise InvalidOption("clusters", labels, f"{expected}, of shape ({objective.num_examples},)")
    if np.any(missing):
        raise InvalidOption("clusters", labels, f"{expected}; {np.count_nonzero(missing)} are missing")
    if names.size < 2:
        raise InvalidOption("clusters", clusters, "two clusters or more: one tells of no scatter")
    return codes
