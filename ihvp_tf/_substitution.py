"""Functions of TensorFlow that are others for a while, in the threads that ask for it and in no other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Substitution:
    """Call it for a context in which the functions are replaced.

    A replacement is called by every thread while some thread is in the context: it asks :attr:`here`, and
    leaves the work to :attr:`originals` where that is false.

    Each place is ``(holder, key, function)``: the holder is a dict with the entry ``key``, or has it as an
    attribute.
    """

    def __init__(self, *places: tuple[Any, str, Callable[..., Any]]) -> None:
        self._places = places
        self._threads = threading.local()
        self._lock = threading.Lock()
        self._users = 0
        self.originals: list[Callable[..., Any]] = []

    @property
    def here(self) -> bool:
        """Whether this thread is in the context."""
        return getattr(self._threads, "here", False)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        before = self.here
        with self._lock:
            if not self._users:
                self.originals = [_exchange(*place) for place in self._places]
            self._users += 1
        self._threads.here = True
        try:
            yield
        finally:
            self._threads.here = before
            with self._lock:
                self._users -= 1
                if not self._users:
                    for (holder, key, _), original in zip(self._places, self.originals, strict=True):
                        _exchange(holder, key, original)


def _exchange(holder: Any, key: str, function: Callable[..., Any]) -> Callable[..., Any]:
    before: Callable[..., Any]
    if isinstance(holder, dict):
        before, holder[key] = holder[key], function
    else:
        before = getattr(holder, key)
        setattr(holder, key, function)
    return before
