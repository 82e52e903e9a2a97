"""What is refused before any work: data that the scores of its examples could not be told apart by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ihvp import fingerprint
from ihvp.arguments import check_instance
from ihvp.backend import GradientFunction
from ihvp.data import Batches, as_data, describe_structure
from ihvp.errors import InvalidOption, NonFinite, OrderChanges, UnequalBatches, describe
from ihvp.influence.blocks import counted_blocks, rows_at_once
from ihvp.influence.gradients import loss_on
from ihvp.objective import Objective


def check_model(objective: Any, train_loss: Any, version: Any) -> None:
    """Refuse what no method of attribution can be made of."""
    check_instance("objective", objective, Objective, "an ihvp.Objective")
    check_loss("train_loss", train_loss)
    if version is not None:
        check_instance("version", version, str, "a str, or None")


def check_loss(option: str, loss: Any) -> None:
    """Refuse a loss that is no function."""
    if loss is not None and not callable(loss) and not isinstance(loss, GradientFunction):
        raise InvalidOption(option, loss, "a function of the objective's form, or None for its own loss")


def check_order(batches: Batches, what: str) -> None:
    """Refuse data that begins with another batch at each pass: its examples have no numbers.

    ``what`` says whose examples they are, here and in all of this package.
    """
    if batches.in_memory:
        return
    firsts = [next(iter(batches), None) for _ in range(2)]
    one, two = (None if first is None else fingerprint.of_batch(first[0]) for first in firsts)
    if one != two:
        raise OrderChanges(what, describe(batches.data))


def check_structure(test: Batches, training: Batches) -> None:
    """Refuse test data of another structure than the training data, whose loss it is to have."""
    found = describe_structure(next(iter(test))[0])
    own = next(iter(training), None)
    if own is not None and found != (expected := describe_structure(own[0])):
        raise UnequalBatches(
            f"A batch of the test data is {found}; expected {expected}, as in training, whose loss is asked "
            "for. Bring it into that form, or pass test_loss=…."
        )


def check_values(objective: Objective, what: str) -> None:
    """Refuse examples that the loss has no finite value for, where the value is known.

    Gradients do not tell: for a label out of range, JAX has the value NaN and the gradient zero.
    """
    if isinstance(objective.loss, GradientFunction) and objective.loss.loss is None:
        return
    for block in counted_blocks(objective, rows_at_once(objective.num_params)):
        for batch in block.batches:
            # Batch by batch: of a test loss no more is asked than its values for them.
            part = objective.on(as_data(batch), alone=True)
            with loss_on(what, batch):
                try:
                    if part.total_weight:
                        part.value()
                except NonFinite as error:
                    last = block.first + block.count - 1
                    raise NonFinite(
                        f"The loss of one of the {what} examples {block.first:,} to {last:,}"
                    ) from error


def question_of(objective: Objective, test_data: Any, test_loss: Callable[..., Any] | None) -> Objective:
    """The test loss over the test data; weights belong to the objective's own loss."""
    check_loss("test_loss", test_loss)
    weights: Any = "same" if test_loss is None else None
    question = objective.on(test_data, test_loss, weights=weights, alone=True)
    check_order(question.batches, "test")
    if test_loss is None:
        check_structure(question.batches, objective.batches)
    return question
