"""How much memory is free, and whether an array fits, asked before any work."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from ihvp.errors import TooLarge
from ihvp.space import VectorSpace


def on_host(space: VectorSpace) -> bool:
    """Whether the vectors are in the host's memory, and on one device of it."""
    return _is_host(space.device)


def free_memory(space: VectorSpace | None) -> int | None:
    """The bytes that are free on the device of a space's vectors; None where it does not tell.

    Without a space, those of the host. On a mesh, those of one device of the first process.
    """
    if space is None:
        return _free(None)
    several = sorted(getattr(space.device, "addressable_devices", ()), key=lambda device: int(device.id))
    if not several:
        return _free(space.device)
    free = _free(several[0])
    if free is None:
        return None
    return int(space.processes.agreed(free // len(several) if _is_host(several[0]) else free))


def _is_host(device: Any) -> bool:
    return "cpu" in (str(device), getattr(device, "platform", None), getattr(device, "type", None))


def _free(device: Any) -> int | None:
    """The bytes that are free on a device, or on the host for None."""
    if device is None or _is_host(device):
        return int(psutil.virtual_memory().available)
    statistics = getattr(device, "memory_stats", lambda: None)() or {}
    if "bytes_limit" in statistics:
        return int(statistics["bytes_limit"] - statistics["bytes_in_use"])
    # torch tells by functions of the module that is named for the kind of device, and keeps freed memory.
    kind: Any = getattr(sys.modules.get("torch"), str(getattr(device, "type", "")), None)
    if not hasattr(kind, "mem_get_info"):
        return None
    kept = kind.memory_reserved(device) - kind.memory_allocated(device)
    return int(kind.mem_get_info(device)[0] + kept)


def require_memory(space: VectorSpace | None, numbers: int, bytes_each: int, what: str, advice: str) -> None:
    """Refuse as :class:`~ihvp.errors.TooLarge` what does not fit beside what is in memory already.

    Where the device, that of ``space`` or the host for None, tells what is free, nothing is allocated.
    Another
    one is asked for the memory, which it gives or refuses at once.
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


def allocate(shape: tuple[int, ...], dtype: np.dtype[Any], what: str, advice: str) -> NDArray[Any]:
    """An array of the host, not yet filled: zeros, which take no memory before they are written to.

    Where it does not fit, that is told before the work, as by :func:`require_memory`.
    """
    sizes = " × ".join(f"{size:,}" for size in shape)
    require_memory(None, math.prod(shape), dtype.itemsize, f"{what}, {sizes},", advice)
    return np.zeros(shape, dtype)
