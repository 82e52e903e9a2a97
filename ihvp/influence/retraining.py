"""Training again, here or on the workers of joblib, and what is asked of each model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ihvp import algebra
from ihvp.arguments import is_integer, naming
from ihvp.backend import Params
from ihvp.errors import FunctionFailed, InvalidOption, NonFinite, ParameterError
from ihvp.influence.workers import number_of_workers, require_precision, results
from ihvp.objective import Objective
from ihvp.packages import required

Answer = TypeVar("Answer")
Job = tuple[tuple[Any, ...], str]
"""The arguments of a training, and what it is called in errors: "the removal of [3]"."""

_MOST_JOBS = 1 << 15


@dataclass(frozen=True, eq=False)
class Retraining(Generic[Answer]):
    """Trains models and asks each of them the same."""

    train: Callable[..., Params]  # the caller's function
    form: str  # how its calls are written, for errors
    question: Objective  # in whose form the parameters are
    measure: Callable[[Objective], Answer]  # asked of the question at them; for other processes, of a module
    with_start: bool = False  # whether the last argument of train is a copy of the question's parameters

    def each(self, jobs: Sequence[Job], n_jobs: int | None, progress: bool | None) -> Iterator[Answer]:
        """The answers in the order of the jobs; ``n_jobs`` as for :func:`ihvp.leave_one_out`."""
        with self.question.space.processes.track("Training again", len(jobs), progress) as advance:
            if n_jobs == 1 or (n_jobs is None and number_of_workers() == 1):
                answers: Iterator[Answer] = (self(*job) for job in jobs)
            else:
                joblib = required("joblib", "n_jobs=…", "pip install 'ihvp[influence]'")
                task, dtype = joblib.delayed(_elsewhere), str(self.question.space.dtype)
                answers = results(joblib, (task(self, job, dtype) for job in jobs), n_jobs)
            for answer in answers:
                yield answer
                advance(1)

    def __call__(self, arguments: tuple[Any, ...], what: str) -> Answer:
        with naming(FunctionFailed, self.form):
            start = (copy.deepcopy(self.question.params),) if self.with_start else ()
            trained = self.train(*arguments, *start)
        if trained is None:
            expected = "a function that returns the parameters; it returned None"
            raise InvalidOption("train_fn", self.train, expected)
        model = self.question.at(trained)
        if not algebra.all_finite(model.backend.flatten(trained)):
            raise ParameterError(
                f"train_fn returned parameters with NaN or infinite entries after {what}; "
                "expected finite ones. Its training diverged: take smaller steps, or more regularisation."
            )
        try:
            return self.measure(model)
        except NonFinite as error:
            raise NonFinite(f"The test loss at what train_fn returned after {what}") from error


def check_train_fn(train_fn: Any, form: str, n_jobs: Any) -> None:
    """Refuse what is no function, or no number of workers."""
    if not callable(train_fn):
        raise InvalidOption("train_fn", train_fn, f"a function {form} that returns parameters")
    if n_jobs is not None and (not is_integer(n_jobs) or not 0 < abs(n_jobs) < _MOST_JOBS):
        expected = "a number of workers, −1 for one on each processor, or None for those of joblib"
        raise InvalidOption("n_jobs", n_jobs, expected)


def _elsewhere(retraining: Retraining[Answer], job: Job, dtype: str) -> Answer:
    """The same in another process, whose framework may be set otherwise."""
    require_precision(retraining.question, dtype)
    return retraining(*job)
