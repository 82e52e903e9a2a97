"""What a loss raises, under a name of this library's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ihvp.errors import IhvpError, LossFailed


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Turn what the user's functions and the framework raise into an error that says what was computed.

    Parameters
    ----------
    what : str
        What is computed, for the error text.

    Raises
    ------
    LossFailed
        The framework's own error is chained. Those of memory that ran out stay as they are, for callers that
        go on with less.
    """
    try:
        yield
    except (IhvpError, MemoryError):
        raise
    except Exception as error:
        if "OutOfMemory" in type(error).__name__:
            raise
        raise LossFailed(what, error) from error
