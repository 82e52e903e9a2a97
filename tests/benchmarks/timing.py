"""Times of several sides, taken in turns."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

# One measurement repeats short calls for as long as the clock and the scheduler need to be even.
_SHORTEST = 0.02
# A side that takes more seconds, and so many times as long as the fastest, has no turns.
_LONG, _FAR = 1.0, 4.0


def finish(result: Any) -> Any:
    """Wait until an asynchronous result is there."""
    if hasattr(result, "block_until_ready"):
        return result.block_until_ready()
    if type(result).__module__ == "torch" and result.is_cuda:
        import torch

        torch.cuda.synchronize(result.device)
    elif isinstance(result, (list, tuple)):
        for part in result:
            finish(part)
    return result


def once(call: Callable[[], Any]) -> float:
    """Seconds of one call, without collections of garbage inside, or with short ones where a library asks."""
    return timed(call)[0]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """The same with the result."""
    gc.collect()
    gc.disable()
    gc.freeze()
    try:
        start = time.perf_counter()
        result = finish(call())
        return time.perf_counter() - start, result
    finally:
        gc.unfreeze()
        gc.enable()


class Times:
    """Seconds of each side in each round, ``(rounds,)``; ``felt`` by the mean, which counts what is rare."""

    def __init__(self, sides: dict[str, list[float]], *, felt: bool = False) -> None:
        self._sides = {name: np.asarray(times) for name, times in sides.items()}
        self._typical = np.mean if felt else np.median

    def __or__(self, other: Times) -> Times:
        """Of the sides of both."""
        sides = self._sides | other._sides
        return Times({name: list(times) for name, times in sides.items()})

    def __getitem__(self, side: str) -> float:
        """The median of one side, or the mean."""
        return float(self._typical(self._sides[side]))

    def ratio(self, side: str, other: str) -> float:
        """The median over the rounds of the ratio within a round, or the ratio of the means.

        Of a side that was timed once, the ratio of the medians.
        """
        if self._typical is np.mean or len(self._sides[side]) != len(self._sides[other]):
            return self[side] / self[other]
        return float(np.median(self._sides[side] / self._sides[other]))

    def fastest(self, *sides: str) -> str:
        """The side with the smallest median."""
        return min(sides, key=self.__getitem__)


def in_turns(
    sides: dict[str, Callable[[], Any]],
    *,
    budget: float = 4.0,
    rounds: tuple[int, int] = (3, 15),
    felt: bool = False,
) -> Times:
    """Each side twice to warm up, then A B A B … until the budget in seconds is spent.

    Of a side that takes far longer than the fastest, the second call is its time.

    Parameters
    ----------
    budget : float
        About so long, but for the warm-up.
    rounds : tuple of int
        The fewest and the most.
    felt : bool
        Whether the warm-up counts, as for users of what compiles by itself.
    """
    warm = {name: [once(call), once(call)] for name, call in sides.items()}
    repeats = {name: max(1, math.ceil(_SHORTEST / min(taken))) for name, taken in warm.items()}
    fastest = min(min(taken) for taken in warm.values())
    far = {name for name, taken in warm.items() if min(taken) > max(_LONG, _FAR * fastest)}
    times = warm if felt else {name: taken[1:] if name in far else [] for name, taken in warm.items()}
    stop = time.perf_counter() + budget
    for done in range(rounds[1]):
        if done >= rounds[0] and time.perf_counter() > stop:
            break
        for name, call in sides.items():
            if name in far:
                continue

            def repeated(call: Callable[[], Any] = call, count: int = repeats[name]) -> Any:
                for _ in range(count - 1):
                    finish(call())
                return call()

            times[name].append(once(repeated) / repeats[name])
    return Times(times, felt=felt)
