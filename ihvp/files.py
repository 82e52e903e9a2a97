"""Files that are whole or not there, and that one process has at a time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ihvp.errors import StoreInUse


def replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under another name first: under its own it is whole, or what it was."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file, which is made if need be; a process that is killed lets go of it.

    Where somebody else has it, that is StoreInUse.
    """
    with path.open("ab") as file:
        try:
            _lock(file)
        except BlockingIOError as error:
            raise StoreInUse(str(path.parent)) from error
        yield


if sys.platform == "win32":

    def _lock(file: BinaryIO) -> None:
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error

else:

    def _lock(file: BinaryIO) -> None:
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            # Some file systems of clusters know no locks; a run alone goes well without.
            return
