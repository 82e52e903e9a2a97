"""The scores of any method, and what they predict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp.arguments import as_array, check_instance, naming, shape_of
from ihvp.errors import FunctionFailed, InvalidOption
from ihvp.evaluate.outcomes import Outcomes

# So many numbers of scores and subsets are read at once (128 MiB).
_NUMBERS = 1 << 24


def scores_of(
    scores: Any, shape: tuple[int, int], test_data: Any, test_loss: Callable[..., Any] | None
) -> Any:
    """An array of this shape, ``(n_test, n_train)``: what was passed, or what a method makes of it."""
    ask = getattr(scores, "scores", scores)
    if callable(ask):
        if test_data is None:
            raise InvalidOption("test_data", None, "that of the outcomes, of which a method makes its scores")
        with naming(FunctionFailed, "scores(test_data)"):
            scores = ask(test_data, **({} if test_loss is None else {"test_loss": test_loss}))
    values = getattr(scores, "values", scores)  # of ihvp.influence.Scores those on the disk
    if shape_of(values) is None:
        values = as_array("scores", scores)
    if tuple(values.shape) != shape:
        expected = f"an array {shape}, a number for each test point and training example of the outcomes"
        raise InvalidOption("scores", values, expected)
    return values


def predicted_rises(
    scores: Any, outcomes: Outcomes, test_data: Any, test_loss: Callable[..., Any] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``Σ S_ji`` over what each subset leaves out, ``(n_test, m)``, and their rounding, ``(n_test,)``.

    That is ``−Σ S_ji`` over the subset, but for a constant of each test point.
    """
    check_instance("outcomes", outcomes, Outcomes, "ihvp.evaluate.Outcomes")
    (subsets, train), tests = outcomes.subsets.shape, outcomes.losses.shape[1]
    values = scores_of(scores, (tests, train), test_data, test_loss)
    predicted, size = np.zeros((tests, subsets)), np.zeros(tests)
    width = max(1, _NUMBERS // (tests + subsets))
    for start in range(0, train, width):
        part = as_array("scores", values[:, start : start + width]).astype(np.float64)
        if not np.isfinite(part).all():
            test, example = np.argwhere(~np.isfinite(part))[0]
            found = f"{part[test, example]} for test point {test} and training example {start + example}"
            raise InvalidOption("scores", found, "finite numbers")
        predicted += part @ ~outcomes.subsets[:, start : start + width].T
        size += np.abs(part).sum(axis=1)
    return predicted, train * np.finfo(np.float64).eps * size
