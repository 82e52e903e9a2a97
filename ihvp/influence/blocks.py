"""Examples in blocks of bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ihvp.backend import Batch
from ihvp.data import Batches, Examples, take_examples
from ihvp.errors import DataError
from ihvp.objective import Objective

# A block of inverse products, a block of training gradients and their tile of scores have at most so many
# numbers each (128 MiB in float32).
NUMBERS = 1 << 25

# Nor more training examples than these in a tile of scores, which an interruption costs at most.
_EXAMPLES = 2048


@dataclass(frozen=True)
class Block:
    """Some consecutive examples."""

    first: int  # the number of the first one in its data
    batches: list[Batch]  # those that hold them
    count: int  # the number of examples


def blocks(batches: Batches, rows: int) -> Iterator[Block]:
    """All examples in blocks of at most ``rows``: large batches are cut, small ones are taken together.

    The same data gives the same blocks each time.
    """
    first = held = 0
    gathered: list[Batch] = []
    for batch, count in replace(batches, batch_size=min(rows, batches.batch_size or rows)):
        if held + count > rows:
            yield Block(first, gathered, held)
            first, held, gathered = first + held, 0, []
        gathered.append(batch)
        held += count
    if held:
        yield Block(first, gathered, held)


def counted_blocks(objective: Objective, rows: int) -> Iterator[Block]:
    """The blocks of all examples, as many as ``num_examples`` says.

    A DataError says that this pass gives another number of them.
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


def windows(objective: Objective, width: int) -> Iterator[tuple[Block, slice]]:
    """The examples of this process in blocks of at most ``width``, and which of a block's they are.

    Data in memory is cut as that of all processes together is, at multiples of ``width``; where others have
    some of a block, examples of this process stand in for them. So the numbers of an example come from
    arrays of the same shape, and have the same bits, over however many processes the data is spread.
    """
    if not objective.batches.in_memory:
        for block in counted_blocks(objective, width):
            yield block, slice(0, block.count)
        return
    data, first = objective.batches.data, objective.first
    stop = first + objective.num_examples
    for start in range(first // width * width, stop, width):
        count = min(width, objective.total_examples - start)
        own = slice(max(0, first - start), min(stop - start, count))
        here = start + own.start - first
        batch = take_examples(data, here, start + own.stop - first)
        if own != slice(0, count):
            numbers = np.arange(count).clip(own.start, own.stop - 1) - own.start
            batch = Examples.of(Batches(batch)).rows(numbers)
        parts = Batches(batch, objective.batches.batch_size)
        yield Block(here, [part for part, _ in parts], count), own


def blocks_of_all(objective: Objective, rows: int) -> Iterator[tuple[int, int, Block | None]]:
    """The blocks of one process after another, which all processes go through together.

    Yields the number of the first example, how many there are, and the block in the process whose it is.
    """
    processes, own, first = objective.processes, counted_blocks(objective, rows), 0
    for rank, stop in enumerate(np.cumsum(objective.counts)):
        while first < stop:
            block = next(own) if rank == processes.rank else None
            count = int(processes.sum(np.array([0 if block is None else block.count]))[0])
            yield first, count, block
            first += count
    next(own, None)  # this pass may have more examples than there were


def rows_at_once(num_params: int) -> int:
    """How many examples make a block whose gradients, and whose square tiles of scores, are bounded."""
    return max(1, min(NUMBERS // num_params, math.isqrt(NUMBERS)))


def tile_columns(num_params: int, count: int) -> int:
    """How many of ``count`` training examples make a tile of scores; a process may have none of them."""
    return evenly(max(1, count), min(rows_at_once(num_params), _EXAMPLES))


def evenly(count: int, most: int) -> int:
    """The size of parts of ``count`` things that are at most ``most`` and about as large as each other.

    >>> evenly(297, 160)
    149
    """
    return math.ceil(count / math.ceil(count / most))
