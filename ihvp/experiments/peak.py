"""How far the resident memory of the process rises during a call."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import psutil


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
