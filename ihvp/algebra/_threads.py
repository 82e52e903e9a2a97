"""Numpy's own threads, beside those of a framework."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ihvp.backend import Vector
from ihvp.shared_context import SharedContext


@contextmanager
def leaving_the_cores_to(vectors: Vector) -> Iterator[None]:
    """Numpy and scipy work on one thread inside, unless the vectors are numpy's.

    Small matrices gain nothing from more threads, and those of OpenBLAS go on waiting for work on cores that
    the framework needs for its next product: on two cores a block of 150 columns took 2.4 times as long.

    Examples
    --------
    >>> import numpy as np
    >>> with leaving_the_cores_to(np.ones(3)):
    ...     product = np.eye(2) @ np.eye(2)
    """
    if isinstance(vectors, np.ndarray):
        yield
        return
    with _one_thread():
        yield


@functools.cache
def _openblas() -> Any:
    """The libraries that numpy's and scipy's wheels bring; nothing else uses their threads."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(prefix="libscipy_openblas")


_one_thread = SharedContext(lambda: _openblas().limit(limits=1))
