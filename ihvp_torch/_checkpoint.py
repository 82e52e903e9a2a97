"""Re-entrant checkpoints: the parameters inside are reached by ``backward()`` and by no other derivative.

``checkpoint(..., use_reentrant=True)`` of torch runs its block without recording it, and calls
``backward()`` on it later. For ``torch.autograd.grad`` the parameters inside do not exist, and it says
nothing.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils import checkpoint as torch_checkpoint


class _Here(threading.local):
    recorded = False


class _Recorded:
    """Stands in for ``CheckpointFunction``, in threads that have asked for it."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        if not _here.recorded:
            return _reentrant.apply(function, preserve_rng_state, *args)

        # The block runs again during a backward pass, which on a GPU is in a thread of autograd's own.
        @functools.wraps(function)
        def block(*tensors: Any) -> Any:
            with recorded_checkpoints():
                return function(*tensors)

        return torch_checkpoint.checkpoint(
            block, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state
        )


_here = _Here()
_lock = threading.Lock()
_users = 0
_reentrant: Any = torch_checkpoint.CheckpointFunction


@contextmanager
def recorded_checkpoints() -> Iterator[None]:
    """In this thread, re-entrant checkpoints are of the other kind: they record what they run.

    ``checkpoint`` looks its function up in its own module, wherever it was imported to.
    """
    global _users, _reentrant
    if _here.recorded:
        yield
        return
    with _lock:
        if not _users:
            _reentrant, torch_checkpoint.CheckpointFunction = torch_checkpoint.CheckpointFunction, _Recorded
        _users += 1
    _here.recorded = True
    try:
        yield
    finally:
        _here.recorded = False
        with _lock:
            _users -= 1
            if not _users:
                torch_checkpoint.CheckpointFunction = _reentrant
