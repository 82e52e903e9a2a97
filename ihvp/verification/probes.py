"""Batches of examples from all over the data, on which it shows whether a loss adds up."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ihvp.backend import Batch
from ihvp.data import Batches, Examples, count_examples, take_examples

# A batch consists of so many runs of consecutive examples: neither sorted nor alternating data looks uniform
# in them.
_RUNS = 8
# Small batches are compared until so many examples were seen, but no more batches than these.
_EXAMPLES, _BATCHES = 64, 4
# So many examples speak for a batch that has some times as many: more than a loss draws at random itself.
_SAMPLE, _LARGE = 1024, 4


def probes(batches: Batches) -> Iterator[Batch]:
    """Batches of at least two examples, no larger than the loss may see.

    Data that is one batch without a ``batch_size`` is the only one. Where each batch holds one example there
    is none: the loss never sees two.

    >>> x = np.arange(100)
    >>> [len(batch) for batch in probes(Batches(x, 3))], [len(batch) for batch in probes(Batches(x))]
    ([3, 3, 3, 3], [100])
    """
    listed = [batches.data] if batches.in_memory else list(batches.data)
    counts = [count_examples(batch, index) for index, batch in enumerate(listed)]
    largest = max(counts, default=0)
    size = min(largest, max(2, batches.batch_size or largest))
    if size < 2:
        return
    if len(listed) == 1 and size == largest:
        yield listed[0]
        return
    generator = np.random.default_rng(0)
    for number in range(min(_BATCHES, max(1, _EXAMPLES // size))):
        try:
            yield _mixed(listed, counts, size, generator)
        except Exception:  # padded to different lengths, or arrays that cannot be joined
            place = number * (len(listed) - 1) // (_BATCHES - 1)
            if counts[place] > 1:
                yield take_examples(listed[place], 0, min(size, counts[place]))


def passes_on_sample(batch: Batch, check: Callable[[Batch], bool]) -> bool:
    """Whether a check passes on examples from all over a large batch, at a small part of its cost.

    A sample can only pass. False says that the batch itself must decide: it is small, or the check fails on
    the sample, whose rows may be no examples, or weigh nothing, or have no gradient.

    >>> x = np.arange(10_000)
    >>> passes_on_sample(x, lambda part: len(part) == 1024), passes_on_sample(x[:100], lambda part: True)
    (True, False)
    """
    count = count_examples(batch)
    if count < _LARGE * _SAMPLE:
        return False
    try:
        return check(_mixed([batch], [count], _SAMPLE, np.random.default_rng(0)))
    except Exception:  # what a loss raises on a part of a batch is its own
        return False


def _mixed(listed: list[Batch], counts: list[int], size: int, generator: np.random.Generator) -> Batch:
    """Runs of examples as one batch, each from a random place in a part of the data of its own."""
    ends = np.cumsum(counts)
    runs = min(_RUNS, size)
    edges = np.linspace(0, ends[-1], runs + 1).astype(int)
    lengths = np.diff(np.linspace(0, size, runs + 1).astype(int))
    parts = []
    for low, high, length in zip(edges[:-1], edges[1:], lengths, strict=True):
        example = generator.integers(low, max(low, high - length) + 1)
        place = int(np.searchsorted(ends, example, side="right"))
        start = max(0, min(int(example - ends[place]), -int(length)) + counts[place])
        parts.append(take_examples(listed[place], start, start + int(length)))
    return Examples.of(Batches(parts)).batch
