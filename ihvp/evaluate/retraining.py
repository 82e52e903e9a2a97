"""Training on subsets of the data, and the losses at test points after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp import fingerprint
from ihvp.arguments import check_instance, check_integer, check_path, is_integer
from ihvp.backend import Params
from ihvp.data import as_data
from ihvp.errors import InvalidOption, ParameterError
from ihvp.evaluate.outcomes import Outcomes
from ihvp.evaluate.subsets import Masks, as_masks, random_subsets
from ihvp.influence.blocks import counted_blocks
from ihvp.influence.checks import question_of
from ihvp.influence.gradients import loss_on
from ihvp.influence.retraining import Job, Retraining, check_train_fn
from ihvp.influence.store import Store
from ihvp.objective import Objective
from ihvp.processes import Processes

TrainFunction = Callable[[NDArray[np.intp], int], Params]
"""``train_fn(kept, seed)``: the parameters after training on the examples ``kept``."""

_FORM = "train_fn(kept, seed)"


def retrain(
    objective: Objective,
    train_fn: TrainFunction,
    test_data: Any,
    subsets: Any = 100,
    test_loss: Callable[..., Any] | None = None,
    *,
    seeds: int | Sequence[int] = 1,
    out: str | Path | None = None,
    n_jobs: int | None = None,
    progress: bool | None = None,
) -> Outcomes:
    """Train on subsets of the training data, and take the loss at each test point each time.

    Once made, the outcomes judge any number of methods: :func:`lds`, :func:`leave_one_out`,
    :func:`dampings`.

    Parameters
    ----------
    objective : Objective
        Of the trained model: the form of its parameters, its loss, and its number of training examples.
    train_fn : callable
        ``train_fn(kept, seed)``: the parameters, in the form of the objective's own, after training on the
        examples with the numbers ``kept``, which ascend. It makes its model anew each time.
    test_data, test_loss
        As for :meth:`ihvp.Influence.scores`. The loss of a test point is that of a batch of it alone.
    subsets : int, array of bool (m, n_train), or sequence of arrays of example numbers
        An integer draws so many by :func:`random_subsets`, each of half of the data.
    seeds : int or sequence of int
        With which seeds each subset is trained on; an integer takes those from 0 on. The mean loss counts.
    out : path, optional
        A folder that keeps each training's losses: after an interruption the same call goes on where it
        stopped.
    n_jobs, progress
        As for :func:`ihvp.leave_one_out`.

    Raises
    ------
    InvalidOption
        The subsets are no subsets of the training data; ``train_fn`` is no function or returned nothing; the
        data is spread over processes.
    ParameterError
        ``train_fn`` returned other parameters than those of the objective, or some that are not finite, or
        changed the objective's own.
    NonFinite
        A test loss after training is NaN or infinite.
    StoreMismatch
        ``out`` holds the outcomes of another model, other data, another ``train_fn`` or other subsets.
    StoreError
        ``out`` cannot be written, is damaged, or another run writes to it.

    Examples
    --------
    A mean is fitted to subsets of four numbers:

    >>> import numpy as np
    >>> import ihvp
    >>> x = np.array([[0.0], [2.0], [4.0], [6.0]])
    >>> def loss(w, x):
    ...     return ((w - x) ** 2).mean() / 2
    >>> objective = ihvp.Objective(loss, x.mean(axis=0), x, grad=lambda w, x: w - x.mean(axis=0))
    >>> def train(kept, seed):
    ...     return x[kept].mean(axis=0)
    >>> ihvp.evaluate.retrain(objective, train, np.array([[3.0]]), subsets=[[0, 1], [2, 3]]).losses
    array([[2.],
           [2.]])
    """
    masks = masks_of(objective, subsets)
    questions = [question_of(objective, test_data, test_loss)]
    losses = trained_losses(objective, train_fn, questions, masks, seeds, out, n_jobs, progress)
    return Outcomes(masks, losses[:, 0])


def masks_of(objective: Objective, subsets: Any) -> Masks:
    """The subsets that a caller asks for."""
    check_instance("objective", objective, Objective, "an ihvp.Objective")
    if objective.processes.count > 1:
        expected = "an objective of one process: of several, each would train for itself"
        raise InvalidOption("objective", objective, expected)
    count = objective.total_examples
    return random_subsets(count, int(subsets)) if is_integer(subsets) else as_masks(subsets, count)


def trained_losses(
    objective: Objective,
    train_fn: TrainFunction,
    questions: Sequence[Objective],
    masks: Masks,
    seeds: int | Sequence[int],
    out: str | Path | None,
    n_jobs: int | None,
    progress: bool | None,
) -> NDArray[np.float64]:
    """The losses that the questions ask for after training on each subset, ``(m, questions, n_test)``."""
    check_train_fn(train_fn, _FORM, n_jobs)
    numbers = _checked_seeds(seeds)
    for question in questions:  # what cannot be asked is found before any training
        with loss_on("test", next(iter(question.batches))[0]):
            losses_of(question)
    jobs: list[Job] = [
        ((np.flatnonzero(mask), seed), f"training on subset {subset} with seed {seed}")
        for subset, mask in enumerate(masks)
        for seed in numbers
    ]
    width = sum(question.num_examples for question in questions)
    found = np.empty((len(jobs), width))
    retraining = Retraining(train_fn, _FORM, questions[0], partial(_answers, tuple(questions)))
    with (
        nullcontext() if out is None else _store(out, objective, train_fn, questions, masks, numbers) as store
    ):
        done = set() if store is None else {row for row, *_ in store.done}
        if store is not None:
            found[sorted(done)] = store.read()[:][sorted(done)]
        missing = [number for number in range(len(jobs)) if number not in done]
        own = fingerprint.of_array(objective.backend.flatten(objective.params))
        answers = retraining.each([jobs[number] for number in missing], n_jobs, progress)
        for number, losses in zip(missing, answers, strict=True):
            if fingerprint.of_array(objective.backend.flatten(objective.params)) != own:
                raise ParameterError(
                    "train_fn changed the parameters of the objective itself; expected a model of its own, "
                    "since the scores are those of the objective's. Train a copy (copy.deepcopy(model)), and "
                    "load the objective's parameters again."
                )
            found[number] = losses
            if store is not None:
                store.write(number, 0, losses[None])
    return np.asarray(found.reshape(len(masks), len(numbers), len(questions), -1).mean(axis=1))


def losses_of(question: Objective) -> NDArray[np.float64]:
    """The loss of each example as a batch of its own, ``(n,)``."""
    # That of a batch does not tell the examples apart, and not every loss is a function of single outputs.
    parts = (question.on(as_data(block.batches[0])) for block in counted_blocks(question, 1))
    return np.array([part.value() for part in parts])


def _answers(questions: Sequence[Objective], trained: Objective) -> NDArray[np.float64]:
    """What all questions find at the parameters of the one that was trained."""
    return np.concatenate([losses_of(question.at(trained.params)) for question in questions])


def _checked_seeds(seeds: Any) -> list[int]:
    if is_integer(seeds):
        check_integer("seeds", seeds, 1)
        return list(range(seeds))
    try:
        numbers = list(seeds)
    except TypeError:
        numbers = []
    if not numbers or not all(is_integer(seed) and seed >= 0 for seed in numbers):
        raise InvalidOption("seeds", seeds, "a number of seeds, or a sequence of integers ≥ 0")
    return [int(seed) for seed in numbers]


def _store(
    out: str | Path,
    objective: Objective,
    train_fn: TrainFunction,
    questions: Sequence[Objective],
    masks: Masks,
    seeds: list[int],
) -> Store:
    check_path("out", out)
    depends_on = {
        "training data": fingerprint.of_examples(objective),
        "train_fn": fingerprint.of_function(train_fn),
        "subsets": fingerprint.of_array(masks),
        "seeds": repr(seeds),
    }
    for number, question in enumerate(questions):
        about = fingerprint.of_objective(question)
        # The outcomes are those of other parameters; what is asked of them is named as in scores.
        del about["parameters"]
        about["test data"], about["test loss"] = about.pop("training data"), about.pop("loss")
        depends_on |= {f"{name} {number}" if number else name: value for name, value in about.items()}
    width = sum(question.num_examples for question in questions)
    shape, holds = (len(masks) * len(seeds), width), ("outcomes", "trainings", "test points")
    return Store(out, shape, np.dtype(np.float64), (1, width), depends_on, Processes(), holds)
