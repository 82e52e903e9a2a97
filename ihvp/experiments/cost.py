"""Seconds of calls, taken in turns, and the memory of one."""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import psutil

_MOST = 101


def medians(calls: Mapping[str, Callable[[], Any]], budget: float, least: int = 3) -> dict[str, float]:
    """The median seconds of each call.

    Each is made once to warm up (compilation, first allocations) and then A B A B …, so that a slow moment
    of the machine meets all of them: ``least`` rounds or more, for ``budget`` seconds, but a hundred at most.
    """
    for call in calls.values():
        finish(call())
    times: dict[str, list[float]] = {name: [] for name in calls}
    stop = time.perf_counter() + budget
    for done in range(_MOST):
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


def rise(call: Callable[[], Any]) -> int:
    """The largest resident memory during the call beyond that at its start, in bytes, looked at every 0.5 ms.

    Of a process whose frameworks keep what they free, only the first large call tells.
    """
    gc.collect()
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    highest = before

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.0005):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        held = call()
        highest = max(highest, process.memory_info().rss)
        del held
    finally:
        done.set()
        watcher.join()
    return highest - before
