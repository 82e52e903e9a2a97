"""Examples in blocks of bounded memory, and their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ihvp import algebra
from ihvp.backend import Batch, Vector
from ihvp.data import Batches, describe_structure
from ihvp.errors import DataError, IhvpError, NonFinite
from ihvp.objective import Objective


@dataclass(frozen=True)
class Block:
    """Some consecutive examples.

    Attributes
    ----------
    first : int
        The number of the first one in its data.
    batches : list of Batch
        Those that hold them.
    count : int
        The number of examples.
    """

    first: int
    batches: list[Batch]
    count: int


def blocks(batches: Batches, rows: int) -> Iterator[Block]:
    """All examples in blocks of at most ``rows``: large batches are cut, small ones are taken together.

    The same data gives the same blocks each time.
    """
    first = held = 0
    gathered: list[Batch] = []
    for batch, count in Batches(batches.data, min(rows, batches.batch_size or rows)):
        if held + count > rows:
            yield Block(first, gathered, held)
            first, held, gathered = first + held, 0, []
        gathered.append(batch)
        held += count
    yield Block(first, gathered, held)


def gradients(objective: Objective, block: Block, what: str) -> Vector:
    """The gradients of a block's examples, ``(count, P)``.

    Parameters
    ----------
    objective : Objective
        The loss and its parameters.
    block : Block
    what : str
        Whose examples they are, for the error text.

    Raises
    ------
    DataError
        The loss cannot take these examples; its own error is chained.
    NonFinite
        A gradient holds NaN or infinity.
    """
    parts: list[Vector] = []
    for batch in block.batches:
        with loss_on(what, batch):
            parts += objective.batch_gradient_chunks(batch)
    rows = parts[0] if len(parts) == 1 else objective.space.xp.concat(parts, axis=0)
    if not algebra.all_finite(rows):
        last = block.first + block.count - 1
        raise NonFinite(f"The gradient of one of the {what} examples {block.first:,} to {last:,}")
    return rows


@contextmanager
def loss_on(what: str, batch: Batch) -> Iterator[None]:
    """Turns what a loss raises on strange data (a label out of range, a wrong width) into a DataError."""
    try:
        yield
    except IhvpError:
        raise
    except Exception as error:
        raise DataError(
            f"The loss failed on the {what} data, {describe_structure(batch)}, with {type(error).__name__}: "
            f"{error}. Expected examples as the model takes them: the same shapes, and labels in its range."
        ) from error
