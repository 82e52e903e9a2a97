"""Contexts that change what all threads of a process see."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any


class SharedContext:
    r"""A context that the first thread enters and the last one leaves.

    Each on its own would restore, on leaving, what another had set.

    ``make()`` gives one that restores what it found when it was entered.

    Examples
    --------
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
