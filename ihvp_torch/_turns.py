"""What one thread does at a time, because there is one of it for all."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

turns = threading.RLock()
"""Held while a module is bound in place or forward mode is in use, and while modules are read."""

compiling = threading.RLock()
"""Held while something is traced or compiled."""


@contextmanager
def silently() -> Iterator[None]:
    """No warnings in the block. Python has one list of filters, which each ``catch_warnings`` puts back."""
    with compiling, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
