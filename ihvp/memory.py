"""How much memory is free, and whether an array fits, asked before any work."""

from __future__ import annotations

import sys
from typing import Any

import psutil

from ihvp.errors import TooLarge
from ihvp.space import VectorSpace


def on_host(space: VectorSpace) -> bool:
    """Whether the vectors are in the host's memory."""
    device = space.device
    return "cpu" in (str(device), getattr(device, "platform", None), getattr(device, "type", None))


def free_memory(space: VectorSpace | None) -> int | None:
    """The bytes that are free on the device of a space's vectors; None where it does not tell.

    Without a space, those of the host.
    """
    if space is None or on_host(space):
        return int(psutil.virtual_memory().available)
    statistics = getattr(space.device, "memory_stats", lambda: None)() or {}
    if "bytes_limit" in statistics:
        return int(statistics["bytes_limit"] - statistics["bytes_in_use"])
    # torch tells by functions of the module that is named for the kind of device, and keeps freed memory.
    kind: Any = getattr(sys.modules.get("torch"), str(getattr(space.device, "type", "")), None)
    if not hasattr(kind, "mem_get_info"):
        return None
    kept = kind.memory_reserved(space.device) - kind.memory_allocated(space.device)
    return int(kind.mem_get_info(space.device)[0] + kept)


def require_memory(space: VectorSpace | None, numbers: int, bytes_each: int, what: str, advice: str) -> None:
    """Refuse what does not fit beside what is in memory already.

    Where the device tells what is free, nothing is allocated. Another one is asked for the memory, which it
    gives or refuses at once.

    The device is that of ``space``, or the host for None. ``what`` and ``advice`` make the text of
    :class:`~ihvp.errors.TooLarge`.
    """
    needed = numbers * bytes_each
    available = free_memory(space)
    if space is not None and space.processes.count > 1:
        # What one process refuses, all refuse.
        least = int(space.processes.each(-1 if available is None else available).min())
        available = None if least < 0 else least
    if available is not None:
        if needed > available:
            raise TooLarge(what, needed, available, advice)
    elif space is not None:
        try:
            space.xp.empty(needed // 4 + 1, dtype=space.xp.float32, device=space.device)
        except (MemoryError, RuntimeError) as error:
            raise TooLarge(what, needed, None, advice) from error
