"""Contexts that change what all threads of a process see, and functions that are others for some of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any


class SharedContext:
    r"""A context that the first thread enters and the last one leaves.

    Each on its own would restore, on leaving, what another had set.

    ``make()`` gives one that restores what it found when it was entered.

    >>> from contextlib import redirect_stdout
    >>> import io
    >>> text = io.StringIO()
    >>> caught = SharedContext(lambda: redirect_stdout(text))
    >>> with caught(), caught():
    ...     print("inside")
    >>> text.getvalue()
    'inside\n'
    """

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._users, self._stack = 0, ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._users:
                self._stack.enter_context(self._make())
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._stack.close()


class Substitution:
    """Call it for a context in which functions are replaced, for the threads that ask for it and no other.

    A replacement is called by every thread while some thread is in the context: it asks :attr:`here`, and
    leaves the work to :attr:`originals` where that is false. Each place is ``(holder, key, function)``: the
    holder is a dict with the entry ``key``, or has it as an attribute.
    """

    def __init__(self, *places: tuple[Any, str, Any]) -> None:
        self._places, self._threads = places, threading.local()
        self._replaced = SharedContext(self._replacing)
        self.originals: list[Any] = []

    @property
    def here(self) -> bool:
        """Whether this thread is in the context."""
        return getattr(self._threads, "here", False)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        before = self.here
        with self._replaced():
            self._threads.here = True
            try:
                yield
            finally:
                self._threads.here = before

    @contextmanager
    def _replacing(self) -> Iterator[None]:
        self.originals = [_exchange(*place) for place in self._places]
        try:
            yield
        finally:
            for (holder, key, _), original in zip(self._places, self.originals, strict=True):
                _exchange(holder, key, original)


def _exchange(holder: Any, key: str, function: Any) -> Any:
    before: Any
    if isinstance(holder, dict):
        before, holder[key] = holder[key], function
    else:
        before = getattr(holder, key)
        setattr(holder, key, function)
    return before
