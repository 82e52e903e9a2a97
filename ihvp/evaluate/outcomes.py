"""What came of training on subsets of the data: the losses at test points."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp.arguments import as_array, check_integer
from ihvp.errors import InvalidOption
from ihvp.evaluate.subsets import Masks, as_masks


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The losses at test points after training on subsets; :func:`retrain` makes them, or your own trainings.

    Attributes
    ----------
    subsets : ndarray of bool (m, n_train)
        Which training examples were kept. Sequences of their numbers do as well, with ``num_examples``.
    losses : ndarray (m, n_test)
        Where a subset was trained on with several seeds, the mean over them.

    Raises
    ------
    InvalidOption
        The subsets are no subsets, or there is not one finite loss for each of them and each test point.

    Examples
    --------
    >>> import ihvp
    >>> outcomes = ihvp.evaluate.Outcomes([[0, 1], [1, 2]], [[0.5, 0.1], [0.7, 0.2]], num_examples=3)
    >>> outcomes.subsets.astype(int)
    array([[1, 1, 0],
           [0, 1, 1]])
    """

    subsets: Masks
    losses: NDArray[np.float64]
    num_examples: InitVar[int | None] = None

    def __post_init__(self, num_examples: int | None) -> None:
        subsets: Any = self.subsets
        if num_examples is None:
            if not (isinstance(subsets, np.ndarray) and subsets.dtype == bool and subsets.ndim == 2):
                expected = "booleans (m, n_train), or arrays of example numbers with num_examples=…"
                raise InvalidOption("subsets", subsets, expected)
            num_examples = subsets.shape[1]
        check_integer("num_examples", num_examples, 2)
        masks, losses = as_masks(subsets, num_examples), as_array("losses", self.losses).astype(np.float64)
        if losses.ndim != 2 or len(losses) != len(masks) or not losses.size:
            raise InvalidOption("losses", losses, f"an array ({len(masks):,}, n_test), a row for each subset")
        if not np.isfinite(losses).all():
            subset, test = np.argwhere(~np.isfinite(losses))[0]
            found = f"{losses[subset, test]} for subset {subset} and test point {test}"
            raise InvalidOption("losses", found, "finite numbers: leave out what diverged, with its subset")
        object.__setattr__(self, "subsets", masks)
        object.__setattr__(self, "losses", losses)

    def __repr__(self) -> str:
        (subsets, train), test = self.subsets.shape, self.losses.shape[1]
        return f"Outcomes(subsets: {subsets:,}, train: {train:,}, test: {test:,})"
