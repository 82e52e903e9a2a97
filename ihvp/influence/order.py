"""Data whose examples can be counted by their place: the same ones in the same order at every pass."""

from __future__ import annotations

from collections.abc import Iterator

from ihvp.data import Batches
from ihvp.errors import DataError, OrderChanges, describe
from ihvp.influence import fingerprint
from ihvp.influence.blocks import Block, blocks
from ihvp.objective import Objective


def check_order(batches: Batches, what: str) -> None:
    """Refuse data that begins with another batch at each pass.

    Parameters
    ----------
    batches : Batches
    what : str
        Whose examples they are, for the error text.

    Raises
    ------
    OrderChanges
    """
    if batches.in_memory:
        return
    one, two = (fingerprint.of_batch(next(iter(batches))[0]) for _ in range(2))
    if one != two:
        raise OrderChanges(what, describe(batches.data))


def counted_blocks(objective: Objective, rows: int) -> Iterator[Block]:
    """The blocks of all examples, as many as ``num_examples`` says.

    Raises
    ------
    DataError
        This pass gives another number of them.
    """
    expected, seen = objective.num_examples, 0
    for block in blocks(objective.batches, rows):
        seen += block.count
        if seen > expected:
            break
        yield block
    if seen != expected:
        raise DataError(
            f"The data gave {expected:,} examples at first and {'more' if seen > expected else f'{seen:,}'} "
            "in a later pass; expected the same data at every pass. Pass a list of batches, or drop sampling "
            "from the loader."
        )
