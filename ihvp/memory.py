"""Whether an array fits in memory, asked before any work."""

from __future__ import annotations

import psutil

from ihvp.errors import TooLarge
from ihvp.space import VectorSpace


def require_memory(space: VectorSpace, numbers: int, bytes_each: int, what: str, advice: str) -> None:
    """Refuse what does not fit beside what is in memory already.

    On the host and on JAX devices, which tell what is free, nothing is allocated. Another device is asked for
    the memory, which it gives or refuses at once.

    Parameters
    ----------
    space : VectorSpace
        Whose device is meant.
    numbers, bytes_each : int
        The size.
    what, advice : str
        For the error's text.

    Raises
    ------
    TooLarge
    """
    needed = numbers * bytes_each
    if _on_host(space):
        available: int | None = psutil.virtual_memory().available
    else:
        statistics = getattr(space.device, "memory_stats", lambda: None)() or {}
        limit = statistics.get("bytes_limit")
        available = None if limit is None else limit - statistics["bytes_in_use"]
    if available is None:
        try:
            space.xp.empty(needed // 4 + 1, dtype=space.xp.float32, device=space.device)
        except (MemoryError, RuntimeError) as error:
            raise TooLarge(what, needed, None, advice) from error
    elif needed > available:
        raise TooLarge(what, needed, available, advice)


def _on_host(space: VectorSpace) -> bool:
    device = space.device
    return "cpu" in (str(device), getattr(device, "platform", None), getattr(device, "type", None))
