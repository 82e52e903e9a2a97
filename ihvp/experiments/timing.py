"""Seconds of calls, taken in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def medians(
    calls: Mapping[str, Callable[[], Any]], budget: float, least: int = 3, most: int = 101
) -> dict[str, float]:
    """The median seconds of each call.

    Each is made once to warm up (compilation, first allocations) and then A B A B …, so that a slow moment
    of the machine meets all of them: ``least`` rounds or more, for ``budget`` seconds, but ``most`` at most.
    """
    for call in calls.values():
        finish(call())
    times: dict[str, list[float]] = {name: [] for name in calls}
    stop = time.perf_counter() + budget
    for done in range(most):
        if done >= least and time.perf_counter() > stop:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            finish(call())
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def finish(result: Any) -> Any:
    """Wait for a result that the device may still be computing."""
    wait = getattr(result, "block_until_ready", None)
    if wait is not None:
        return wait()
    if not str(getattr(result, "device", "cpu")).startswith("cpu"):
        float(result.reshape(-1)[0])
    return result
