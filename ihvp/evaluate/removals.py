"""What becomes of a prediction without the examples that are said to be behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ihvp.arguments import as_array, check_function, check_integer, check_seed
from ihvp.backend import GradientFunction
from ihvp.errors import InvalidOption
from ihvp.evaluate.retraining import TrainFunction, masks_of, trained_losses
from ihvp.evaluate.scores import scores_of
from ihvp.evaluate.subsets import all_but
from ihvp.influence.checks import question_of
from ihvp.influence.top_k import TopK
from ihvp.objective import Objective
from ihvp.packages import required

if TYPE_CHECKING:
    import pandas

_FRACTIONS = (0.01, 0.02, 0.05, 0.1)


@dataclass(frozen=True, eq=False)
class Brittleness:
    """The rise of the loss at each test point without its k most helpful examples, beside random ones.

    Attributes
    ----------
    ks : ndarray (K,)
        How many were removed.
    per_test, random_per_test : ndarray (K, n_test)
        The rise of the loss; of random removals the mean over their draws.
    flips, random_flips : ndarray (K,), or None
        The fraction of right predictions that became wrong, where ``wrong`` was given.

    Examples
    --------
    >>> import numpy as np
    >>> found = Brittleness(np.array([1, 5]), np.array([[0.1, 0.3], [1.0, 2.0]]), np.zeros((2, 2)))
    >>> print(found)
    without the top 1: 0.200 ± 0.100, without 1 at random: 0.000 ± 0.000
    without the top 5: 1.500 ± 0.500, without 5 at random: 0.000 ± 0.000
    """

    ks: NDArray[np.int64]
    per_test: NDArray[np.float64]
    random_per_test: NDArray[np.float64]
    flips: NDArray[np.float64] | None = None
    random_flips: NDArray[np.float64] | None = None

    @property
    def value(self) -> NDArray[np.float64]:
        """The mean rise over test points, ``(K,)``."""
        return np.asarray(self.per_test.mean(axis=1))

    @property
    def standard_error(self) -> NDArray[np.float64]:
        """That of the mean over test points, ``(K,)``; NaN of a single one."""
        return _standard_error(self.per_test)

    @property
    def table(self) -> dict[str, NDArray[Any]]:
        """What there is for each k, by name."""
        columns = {
            "k": self.ks,
            "rise": self.value,
            "standard_error": self.standard_error,
            "random_rise": self.random_per_test.mean(axis=1),
            "random_standard_error": _standard_error(self.random_per_test),
        }
        if self.flips is not None and self.random_flips is not None:
            columns |= {"flips": self.flips, "random_flips": self.random_flips}
        return columns

    def to_pandas(self) -> pandas.DataFrame:
        """A ``DataFrame`` with a row for each k; needs pandas."""
        pandas = required("pandas", "Brittleness.to_pandas", "pip install pandas")
        return pandas.DataFrame(self.table)

    def plot(self, ax: Any = None, label: str | None = None) -> Any:
        """Draw the rises over k, and return the matplotlib ``Axes``; several methods may share them."""
        from ihvp import plot

        return plot.brittleness(self, ax=ax, label=label)

    def __str__(self) -> str:
        lines = []
        for k, rise, error, random, random_error, *flips in zip(*self.table.values(), strict=True):
            line = f"without the top {k}: {rise:.3f} ± {error:.3f}, "
            line += f"without {k} at random: {random:.3f} ± {random_error:.3f}"
            lines.append(line + ("; became wrong: {:.1%} and {:.1%}".format(*flips) if flips else ""))
        return "\n".join(lines)


def brittleness(
    scores: Any,
    objective: Objective,
    train_fn: TrainFunction,
    test_data: Any,
    ks: Sequence[int] | None = None,
    test_loss: Callable[..., Any] | None = None,
    *,
    wrong: Callable[..., Any] | None = None,
    draws: int = 3,
    seeds: int | Sequence[int] = 1,
    seed: int = 0,
    out: str | Path | None = None,
    n_jobs: int | None = None,
    progress: bool | None = None,
) -> Brittleness:
    """Remove the examples that help each test point most, train again, and see how the test point fares.

    That is one training for each test point and each k, and ``draws`` more for each k, with each seed (Ilyas,
    Park, Engstrom, Leclerc and Madry, "Datamodels", ICML 2022, section 4.1).

    Parameters
    ----------
    scores
        As for :func:`lds`; or a ranking, integers ``(n_test, k)``, the most helpful example first, such as
        :meth:`ihvp.influence.Scores.most_helpful` gives, or the :class:`ihvp.influence.TopK` of helpful ones.
    objective, train_fn, test_data, test_loss, seeds, out, n_jobs, progress
        As for :func:`retrain`.
    ks : sequence of int, optional
        How many to remove; by default 1, 2, 5 and 10 % of the training data.
    wrong : callable, optional
        In the objective's form, ``wrong(params, batch)`` or ``wrong(outputs, batch)``: the fraction of a
        batch whose predictions are wrong. No derivative of it is taken.
    draws : int
        How often as many examples are removed at random.
    seed : int
        Of what is drawn.

    Raises
    ------
    InvalidOption
        A k is no number of examples, or the ranking has fewer; and those of :func:`retrain`.

    Examples
    --------
    Without its nearest number a mean is further from the test point:

    >>> import numpy as np
    >>> import ihvp
    >>> x = np.array([[0.0], [2.0], [4.0], [6.0]])
    >>> def loss(w, x):
    ...     return ((w - x) ** 2).mean() / 2
    >>> objective = ihvp.Objective(loss, x.mean(axis=0), x, grad=lambda w, x: w - x.mean(axis=0))
    >>> def train(kept, seed):
    ...     return x[kept].mean(axis=0)
    >>> influence = ihvp.Influence(objective)
    >>> found = ihvp.evaluate.brittleness(influence, objective, train, np.array([[6.0], [5.0]]), ks=[1])
    >>> found.per_test.round(2)
    array([[3.5, 2.5]])
    """
    check_function("wrong", wrong, "a function of the objective's form, or None")
    check_integer("draws", draws, 1)
    check_seed(seed)
    count = masks_of(objective, 1).shape[1]
    questions = [question_of(objective, test_data, test_loss)]
    if wrong is not None:
        # Of an objective with grad, too, its value alone is asked for.
        error: Any = GradientFunction(wrong, wrong) if isinstance(objective.loss, GradientFunction) else wrong
        questions.append(question_of(objective, test_data, error))
    numbers, tests = _checked_ks(ks, count), questions[0].num_examples
    ranking = _ranking(scores, (tests, count), max(numbers), test_data, test_loss)
    generator = np.random.default_rng(seed)
    removed = [row[:k] for k in numbers for row in ranking]
    removed += [generator.permutation(count)[:k] for k in numbers for _ in range(draws)]
    masks = np.concatenate([np.ones((1, count), dtype=bool), all_but(count, removed)])
    losses = trained_losses(objective, train_fn, questions, masks, seeds, out, n_jobs, progress)
    before, after = losses[0], losses[1 : 1 + len(numbers) * tests]
    # Of each training without the top of a test point, what it does to that test point.
    top = after.reshape(len(numbers), tests, len(questions), tests)
    own = np.einsum("ktqt->qkt", top)
    random = losses[1 + len(after) :].reshape(len(numbers), draws, len(questions), tests).mean(axis=1)
    rises, random_rises = own - before[:, None], random.swapaxes(0, 1) - before[:, None]
    if wrong is None:
        return Brittleness(np.array(numbers), rises[0], random_rises[0])
    right = before[1] < 0.5
    flips = (
        each[1][:, right].mean(axis=1) if right.any() else np.full(len(numbers), np.nan)
        for each in (rises, random_rises)
    )
    return Brittleness(np.array(numbers), rises[0], random_rises[0], *flips)


def _checked_ks(ks: Any, count: int) -> list[int]:
    if ks is None:
        return sorted({max(1, round(fraction * count)) for fraction in _FRACTIONS})
    numbers = as_array("ks", ks, "iu", "integers")
    if numbers.ndim != 1 or not numbers.size or numbers.min() < 1 or numbers.max() >= count:
        raise InvalidOption("ks", ks, f"integers from 1 to {count - 1:,}: fewer than all training examples")
    return [int(k) for k in numbers]


def _ranking(
    scores: Any, shape: tuple[int, int], most: int, test_data: Any, test_loss: Callable[..., Any] | None
) -> NDArray[np.intp]:
    """The numbers of the ``most`` examples that help each test point most, ``(n_test, most)``."""
    tests, count = shape
    if isinstance(scores, TopK):
        if scores.which != "helpful":
            raise InvalidOption("scores", f"the {scores.which} examples", "a TopK with which='helpful'")
        scores = scores.indices
    if isinstance(scores, np.ndarray) and scores.dtype.kind in "iu":
        ranking = scores
        valid = ranking.ndim == 2 and len(ranking) == tests and ranking.shape[1] >= most
        if not valid or ranking.min() < 0 or ranking.max() >= count:
            expected = f"a ranking ({tests}, {most} or more) of numbers from 0 to {count - 1:,}, or scores"
            raise InvalidOption("scores", ranking, expected)
        return ranking[:, :most]
    values = scores_of(scores, shape, test_data, test_loss)
    rows = [-as_array("scores", values[test]).astype(np.float64) for test in range(tests)]
    if not np.isfinite(rows).all():
        raise InvalidOption("scores", values, "finite numbers")
    return np.array([np.argsort(row, kind="stable")[:most] for row in rows])


def _standard_error(per_test: NDArray[np.float64]) -> NDArray[np.float64]:
    count = per_test.shape[1]
    spread = per_test.std(axis=1, ddof=1) if count > 1 else np.full(len(per_test), np.nan)
    return np.asarray(spread / np.sqrt(count))
