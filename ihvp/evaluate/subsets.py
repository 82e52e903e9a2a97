"""Subsets of the training data, as rows of booleans: which examples a model is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp.arguments import check_integer, check_number, check_seed
from ihvp.errors import InvalidOption

Masks = NDArray[np.bool_]
"""``(m, n_train)``: True where an example of the training data is kept in a subset."""


def random_subsets(num_examples: int, count: int = 100, fraction: float = 0.5, seed: int = 0) -> Masks:
    """Subsets drawn at random, each of the same size and without replacement, ``(count, num_examples)``.

    Parameters
    ----------
    num_examples : int
        N, the size of the training data.
    count : int
        How many subsets.
    fraction : float
        The part of the data that each of them has, above 0 and below 1.
    seed : int

    Examples
    --------
    >>> import ihvp
    >>> ihvp.evaluate.random_subsets(6, count=3, fraction=0.5).sum(axis=1)
    array([3, 3, 3])
    """
    check_integer("num_examples", num_examples, 2)
    check_integer("count", count, 1)
    check_number("fraction", fraction, lambda part: 0 < part < 1, "a number between 0 and 1")
    check_seed(seed)
    size = min(max(1, round(fraction * num_examples)), num_examples - 1)
    generator = np.random.default_rng(seed)
    kept = [generator.permutation(num_examples)[:size] for _ in range(count)]
    return as_masks(kept, num_examples)


def all_but(num_examples: int, removed: Sequence[Any]) -> Masks:
    """The whole training data without an example, or a group of examples, each time.

    Parameters
    ----------
    num_examples : int
        N, the size of the training data.
    removed : sequence of int or of sequences of int

    Examples
    --------
    >>> import ihvp
    >>> ihvp.evaluate.all_but(4, [0, [1, 3]]).astype(int)
    array([[0, 1, 1, 1],
           [1, 0, 1, 0]])
    """
    check_integer("num_examples", num_examples, 2)
    try:
        groups = [np.atleast_1d(group) for group in removed]
    except Exception as error:  # it is no sequence, or holds what numpy cannot read
        raise InvalidOption("removed", removed, "numbers of examples, or groups of them") from error
    return ~as_masks(groups, num_examples, "removed")


def as_masks(subsets: Any, num_examples: int, option: str = "subsets") -> Masks:
    """Subsets in one form: rows of booleans stay, and arrays of example numbers become such rows."""
    expected = (
        f"booleans (m, {num_examples:,}), one for each training example, or a sequence of m arrays of "
        f"different integers from 0 to {num_examples - 1:,}, at least one in each"
    )
    try:
        listed = list(subsets)
        arrays = [np.asarray(subset) for subset in listed]
    except Exception as error:
        raise InvalidOption(option, subsets, expected) from error
    masks = np.zeros((len(arrays), num_examples), dtype=bool)
    for mask, array in zip(masks, arrays, strict=True):
        if array.dtype == bool and array.shape == mask.shape:
            mask[:] = array
        elif array.ndim == 1 and array.dtype.kind in "iu" and np.all((array >= 0) & (array < num_examples)):
            mask[array] = True
        if (
            array.ndim != 1
            or not mask.any()
            or mask.sum() != (array.sum() if array.dtype == bool else array.size)
        ):
            raise InvalidOption(option, array, expected)
    if not arrays:
        raise InvalidOption(option, subsets, expected)
    return masks
