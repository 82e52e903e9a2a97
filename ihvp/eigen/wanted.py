"""Which eigenvalues are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Which = Literal["LA", "SA", "LM", "BE"]
CHOICES: tuple[str, ...] = get_args(Which)


@dataclass(frozen=True)
class Wanted:
    """The k largest ("LA"), smallest ("SA"), largest in magnitude ("LM"), or some from both ends ("BE").

    Examples
    --------
    >>> import numpy as np
    >>> values = np.array([3.0, -4.0, 1.0, 0.0])
    >>> [Wanted(which, 2).first(values).tolist() for which in ("LA", "SA", "LM", "BE")]
    [[3.0, 1.0], [-4.0, 0.0], [-4.0, 3.0], [3.0, -4.0]]
    """

    which: Which
    k: int

    def order(self, values: NDArray[np.float64]) -> NDArray[np.intp]:
        """The places of all values, the most wanted first."""
        if self.which == "SA":
            return np.argsort(values, kind="stable")
        if self.which == "LM":
            return np.argsort(-np.abs(values), kind="stable")
        descending = np.argsort(-values, kind="stable")
        if self.which == "LA":
            return descending
        # From the upper end and the lower one in turn, so that it has one more where k is odd.
        return np.stack([descending, descending[::-1]], axis=1).ravel()[: values.size]

    def first(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The k most wanted values, the first one first."""
        return values[self.order(values)[: self.k]]

    def change(self, before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
        """The most by which one of the k values differs: the first from the first, and so on."""
        if self.which == "LM":  # of equal magnitudes either sign may be found
            before, after = np.abs(before), np.abs(after)
        return float(np.abs(np.sort(before) - np.sort(after)).max())

    def fences(
        self, found: NDArray[np.float64], margin: float
    ) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        """Points beyond which no eigenvalue may be missed, and the place among the k that each is for.

        A further eigenvalue beyond the point, away from the others, would take that place.

        ``found`` are values, the most wanted first, which may be wrong by ``margin``.
        """
        places = np.arange(self.k)
        if self.which == "LM":
            beyond = np.abs(found) + margin
            return np.concatenate([beyond, -beyond]), np.concatenate([places, places])
        if self.which == "BE":
            return found + np.where(places % 2 == 0, margin, -margin), places
        return found + (margin if self.which == "LA" else -margin), places
