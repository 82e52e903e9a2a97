"""Prediction beside proof: the change of a test loss as predicted, and by training again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ihvp.backend import Params
from ihvp.errors import InvalidOption, LossNotAdditive
from ihvp.influence.group import groups_of
from ihvp.influence.influence import Influence
from ihvp.influence.retraining import Retraining, check_train_fn
from ihvp.objective import Objective
from ihvp.packages import required
from ihvp.solvers import Solver

if TYPE_CHECKING:
    import pandas

TrainFunction: TypeAlias = Callable[[NDArray[np.intp], Params], Params]
"""``train_fn(removed, start)``: trains without the examples ``removed`` from the parameters ``start`` on."""

_FORM = "train_fn(removed, start)"
_CONFIDENCE = 1.959963984540054  # of 95 %, both sides, of a normal variable


@dataclass(frozen=True)
class Correlation:
    """A correlation coefficient with its 95 % confidence interval.

    Attributes
    ----------
    value, low, high : float
        The interval is Fisher's: normal in ``artanh r`` with standard error ``1/√(n − 3)``, for Spearman's
        coefficient ``√((1 + r²/2)/(n − 3))`` (Bonett and Wright, Psychometrika 65, 2000). Of fewer than four
        pairs it is −1 to 1. Where one side is constant there is no correlation, and ``value`` is NaN.

    Examples
    --------
    >>> print(Correlation(0.97, 0.93, 0.99))
    0.9700 (0.9300 to 0.9900)
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """Predicted and actual changes of the loss at a test point, or of the mean loss of several.

    Attributes
    ----------
    groups : list of ndarray
        The examples that were removed each time.
    predicted, actual : ndarray (n,)
        The rise of the loss.

    Examples
    --------
    >>> import numpy as np
    >>> removals = LeaveOneOut([np.array([i]) for i in range(5)], np.arange(5.0), 1.1 * np.arange(5.0))
    >>> round(removals.slope, 3), round(removals.pearson.value, 6)
    (1.1, 1.0)
    """

    groups: list[NDArray[np.intp]]
    predicted: NDArray[np.float64]
    actual: NDArray[np.float64]

    @property
    def pearson(self) -> Correlation:
        """Pearson's correlation of predicted and actual changes."""
        return _correlation(self.predicted, self.actual, lambda r: 1.0)

    @property
    def spearman(self) -> Correlation:
        """Spearman's rank correlation."""
        from scipy.stats import rankdata  # loaded only where it is asked for

        return _correlation(rankdata(self.predicted), rankdata(self.actual), lambda r: 1 + r**2 / 2)

    @property
    def slope(self) -> float:
        """That of the least-squares line of actual over predicted changes; 1 where the sizes are right."""
        x = self.predicted - self.predicted.mean()
        return float(x @ self.actual / (x @ x)) if x.any() else np.nan

    def to_pandas(self) -> pandas.DataFrame:
        """A ``DataFrame`` with the columns removed, predicted and actual; needs pandas."""
        pandas = required("pandas", "LeaveOneOut.to_pandas", "pip install pandas")
        removed = [int(group[0]) if len(group) == 1 else group.tolist() for group in self.groups]
        return pandas.DataFrame({"removed": removed, "predicted": self.predicted, "actual": self.actual})

    def plot(self, ax: Any = None) -> Any:
        """Draw actual over predicted changes, and return the matplotlib ``Axes``."""
        from ihvp import plot

        return plot.leave_one_out(self, ax=ax)


def leave_one_out(
    objective: Objective,
    train_fn: TrainFunction,
    indices: Sequence[Any],
    test_data: Any,
    test_loss: Callable[..., Any] | None = None,
    *,
    damping: float = 0.0,
    solver: Solver | None = None,
    train_loss: Callable[..., Any] | None = None,
    second_order: bool = False,
    n_jobs: int | None = None,
    progress: bool | None = None,
) -> LeaveOneOut:
    """Remove training examples, train again, and compare with what influence functions predict.

    Parameters
    ----------
    objective : Objective
        At its optimum, as for :class:`ihvp.Influence`.
    train_fn : callable
        ``train_fn(removed, start)``: the parameters after training without the examples numbered ``removed``,
        beginning at ``start``, in the form of the objective's own. It trains what influence describes: the
        sum of the remaining terms over the N of before, and the whole regulariser. ``start`` is a copy, which
        may be trained in place and returned. Where the data is spread over processes, all call it with the
        numbers of the examples among those of all.
    indices : sequence of int or of groups
        What to remove each time: an example, or a sequence of them.
    test_data, test_loss
        As for :meth:`ihvp.Influence.scores`; of several test points the mean loss counts, by the objective's
        weights where the loss divides by them.
    damping, solver, train_loss
        As for :class:`ihvp.Influence`.
    second_order : bool
        As for :meth:`ihvp.Influence.group`.
    n_jobs : int, optional
        So many workers of joblib train at the same time (−1 for all processors); by default as many as
        ``joblib.parallel_config`` says, or none. For other processes than this ``train_fn``, the parameters
        and the test data are pickled, functions and modules of a script included.
    progress : bool, optional
        Shows a progress bar; by default in a terminal, after a second.

    Raises
    ------
    LossNotAdditive
        The loss of several test points is no mean over them.
    InvalidOption
        ``train_fn`` is no function or returned nothing; ``indices`` are no numbers of training examples.
    ParameterError
        ``train_fn`` returned other parameters than those of the objective, or some that are not finite, or
        another process reads them in another precision.
    NonFinite
        The test loss after training is NaN or infinite.
    PackageNotInstalled
        joblib is missing, and ``n_jobs`` is neither 1 nor None.

    Examples
    --------
    A mean is fitted again without one of its numbers:

    >>> import numpy as np
    >>> import ihvp
    >>> x = np.array([[0.0], [2.0], [4.0]])
    >>> def loss(w, x):
    ...     return ((w - x) ** 2).mean() / 2
    >>> objective = ihvp.Objective(loss, np.array([2.0]), x, grad=lambda w, x: w - x.mean(axis=0))
    >>> def train(removed, start):
    ...     return np.delete(x, removed, axis=0).mean(axis=0)
    >>> removals = ihvp.leave_one_out(objective, train, [0, 1, 2], np.array([[3.0]]), second_order=True)
    >>> removals.predicted.round(3), removals.actual.round(3)
    (array([-1.,  0.,  1.]), array([-0.5,  0. ,  1.5]))
    """
    check_train_fn(train_fn, _FORM, n_jobs)
    try:
        indices = list(indices)
    except Exception as error:
        expected = "a sequence of example numbers, or of groups of them"
        raise InvalidOption("indices", indices, expected) from error
    influence = Influence(objective, damping, solver, train_loss=train_loss)
    groups = [group for index in indices for group in groups_of([index], objective.total_examples)[0]]
    # Before the solves, which may take long: the value may be unknown.
    question = _with_a_mean(influence._model.question(test_data, test_loss), objective)
    before = question.value()
    changes = influence.group(groups, test_data, test_loss, second_order=second_order, progress=progress)
    retraining = Retraining(train_fn, _FORM, question, Objective.value, with_start=True)
    jobs = [((group,), f"the removal of {np.array2string(group, threshold=8)}") for group in groups]
    with objective.processes.together():
        after = list(retraining.each(jobs, n_jobs, progress))
    weights = [question.weighting.of(batch, count) for batch, count in question.batches]
    predicted = np.average(np.asarray(changes, dtype=np.float64), axis=0, weights=np.concatenate(weights))
    # Processes that trained for themselves have one answer, that of the first.
    trained = np.array([objective.processes.agreed(loss) for loss in after])
    return LeaveOneOut(groups, predicted, trained - before)


def _with_a_mean(question: Objective, objective: Objective) -> Objective:
    """The question with the weights by which its loss is a mean over test points, none or the objective's."""
    try:
        question.require_additive()
    except LossNotAdditive:
        question = question.on(question.batches.data, weights=objective.weighting.function)
        question.require_additive()
    return question


def _correlation(
    x: NDArray[np.float64], y: NDArray[np.float64], variance: Callable[[float], float]
) -> Correlation:
    """Pearson's, with Fisher's interval for a standard error ``√(variance(r) / (n − 3))`` of ``artanh r``."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(np.nan, -1.0, 1.0)
    value = float(np.corrcoef(x, y)[0, 1])
    if len(x) <= 3:
        return Correlation(value, -1.0, 1.0)
    if abs(value) == 1:
        return Correlation(value, value, value)
    reach = _CONFIDENCE * np.sqrt(variance(value) / (len(x) - 3))
    low, high = np.tanh(np.arctanh(value) + np.array([-reach, reach]))
    return Correlation(value, float(low), float(high))
