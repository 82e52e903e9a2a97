"""Whether a loss is finite on the examples that it is asked about."""

from __future__ import annotations

from ihvp.backend import GradientFunction
from ihvp.errors import NonFinite
from ihvp.influence.blocks import loss_on
from ihvp.influence.order import counted_blocks
from ihvp.objective import Objective


def check_values(objective: Objective, rows: int, what: str) -> None:
    """Refuse examples that the loss has no finite value for, where the value is known.

    Gradients do not tell: for a label out of range, JAX has the value NaN and the gradient zero.

    Parameters
    ----------
    objective : Objective
    rows : int
        How many examples to take at once.
    what : str
        Whose examples they are, for the error text.

    Raises
    ------
    DataError
        The loss cannot take these examples; its own error is chained.
    NonFinite
    """
    if isinstance(objective.loss, GradientFunction) and objective.loss.loss is None:
        return
    for block in counted_blocks(objective, rows):
        with loss_on(what, block.batches[0]):
            try:
                objective.on(block.batches).value()
            except NonFinite as error:
                last = block.first + block.count - 1
                raise NonFinite(
                    f"The loss of one of the {what} examples {block.first:,} to {last:,}"
                ) from error
