"""Scores on disk: written chunk by chunk, complete after a crash and a second call."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ihvp.errors import PackageNotInstalled, StoreError, StoreMismatch
from ihvp.influence.lock import locked

_MANIFEST, _JOURNAL, _LOCK = "manifest.json", "done.txt", ".lock"

Chunk = tuple[int, int, int, int]
"""The first row, the first column, and the numbers of rows and columns."""


class Store:
    """A folder with the scores, the inverse products, and a record of what is done.

    =================  ==============================================================================
    ``manifest.json``  the shape, and what the scores depend on
    ``scores.npy``     ``(n_test, n_train)``; ``scores.zarr`` where the folder's name ends in ``.zarr``
    ``products-….npz`` the inverse products of a block of test points
    ``done.txt``       a line for each finished chunk of scores
    =================  ==============================================================================

    A chunk is in its file, and that on the disk, before its line is written, so that a line is a promise
    whatever ends the run; what has no line is computed again, and in a zarr store what has no file.

    Parameters
    ----------
    folder : str or Path
        Made if need be.
    shape : (n_test, n_train)
    dtype : dtype
    chunk : (int, int)
        The largest chunk.
    depends_on : mapping of str to str
        Names and fingerprints of what the scores depend on.

    Attributes
    ----------
    done : set of Chunk
        What is finished.

    Raises
    ------
    StoreMismatch
        The folder holds scores that depend on something else.
    StoreInUse
        Another run writes to the folder.
    StoreError
        The folder cannot be written, or the disk has no room.
    PackageNotInstalled
        zarr is wanted and missing.
    """

    def __init__(
        self,
        folder: str | Path,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        chunk: tuple[int, int],
        depends_on: Mapping[str, str],
    ) -> None:
        self.folder = Path(folder)
        self._zarr = _zarr() if self.folder.suffix == ".zarr" else None
        self._scores = self.folder / ("scores.npy" if self._zarr is None else "scores.zarr")
        manifest = {"shape": list(shape), "dtype": dtype.str, **depends_on}
        with self._writing(), ExitStack() as files:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.enter_context(locked(self.folder / _LOCK))
            if not (self.folder / _MANIFEST).exists():
                self._refuse_foreign()
            elif self._scores.exists() or self._has_results():
                self._compare(manifest)
            if not self._scores.exists():
                self._begin(manifest, shape, dtype, chunk)
            self._write_chunk = self._writer(files)
            self.done = self._finished()
            # Unbuffered: what a full disk refuses must not be tried again when the file is closed.
            self._journal = files.enter_context((self.folder / _JOURNAL).open("ab", buffering=0))
            self._files = files.pop_all()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        with self._writing():
            self._files.close()

    def read(self) -> Any:
        """The scores, read-only: a memory map, or a zarr array."""
        with self._writing():
            if self._zarr is not None:
                return self._zarr.open_array(self._scores, mode="r")
            return np.load(self._scores, mmap_mode="r")

    def write(self, row: int, column: int, chunk: NDArray[Any]) -> None:
        """Keep a chunk of scores, whose first entry is at ``(row, column)``."""
        key = (row, column, chunk.shape[0], chunk.shape[1])
        with self._writing():
            self._write_chunk(row, column, chunk)
            line = _line(key)
            if self._journal.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._journal.fileno())
        self.done.add(key)

    def products(self, row: int, count: int) -> tuple[NDArray[Any], float] | None:
        """The kept inverse products of ``count`` test points from ``row`` on, and their residual."""
        path = self.folder / _products(row)
        if not path.exists():
            return None
        # numpy leaves a file open where it finds it torn.
        with self._writing(), path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            vectors, residual = arrays["vectors"], float(arrays["residual"])
        return (vectors, residual) if len(vectors) == count else None

    def keep_products(self, row: int, vectors: NDArray[Any], residual: float) -> None:
        """Keep the inverse products ``(k, P)`` of a block of test points."""
        with self._writing():
            self._replace(_products(row), lambda file: np.savez(file, vectors=vectors, residual=residual))

    def _compare(self, manifest: Mapping[str, Any]) -> None:
        found = json.loads((self.folder / _MANIFEST).read_text(encoding="utf-8"))
        differing = [key for key in {**manifest, **found} if manifest.get(key) != found.get(key)]
        if differing:
            raise StoreMismatch(
                str(self.folder), {key: (found.get(key), manifest.get(key)) for key in differing}
            )

    def _has_results(self) -> bool:
        """Whether work is kept here, be it of a store whose scores are missing."""
        journal = self.folder / _JOURNAL
        return (journal.exists() and journal.stat().st_size > 0) or any(self.folder.glob("products-*"))

    def _refuse_foreign(self) -> None:
        # What a set-up leaves that was interrupted before there was a manifest.
        leftovers = {_LOCK, f"{_MANIFEST}.part"}
        foreign = sorted(path.name for path in self.folder.iterdir() if path.name not in leftovers)
        if foreign:
            raise StoreError(
                f"{self.folder} holds other files ({', '.join(foreign[:3])}) and no manifest; expected an "
                "empty folder, a new one, or the store of an earlier run."
            )

    def _begin(
        self,
        manifest: Mapping[str, Any],
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        chunk: tuple[int, int],
    ) -> None:
        """Set up a new store. The array takes its name last: a folder that has it is complete."""
        self._replace(_MANIFEST, lambda file: file.write(json.dumps(manifest, indent=1).encode()))
        for path in (self.folder / _JOURNAL, *self.folder.glob("products-*")):
            path.unlink(missing_ok=True)
        part = self._scores.with_name(f"{self._scores.name}.part")
        try:
            if self._zarr is not None:
                chunks = tuple(max(1, min(pair)) for pair in zip(chunk, shape, strict=True))
                # zarr writes no file for a chunk of nothing but the fill value, which zeros may be.
                self._zarr.create_array(
                    part, shape=shape, dtype=dtype, chunks=chunks, fill_value=np.nan, overwrite=True
                )
            else:
                np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=shape)
                _reserve(part)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            part.unlink(missing_ok=True)
            raise
        part.replace(self._scores)

    def _writer(self, files: ExitStack) -> Callable[[int, int, NDArray[Any]], None]:
        """What puts a chunk into the array, so that a run that is killed afterwards does not lose it."""
        if self._zarr is not None:
            array = self._zarr.open_array(self._scores, mode="r+")

            def assign(row: int, column: int, chunk: NDArray[Any]) -> None:
                array[row : row + chunk.shape[0], column : column + chunk.shape[1]] = chunk
                paths = self._zarr_files((row, column, chunk.shape[0], chunk.shape[1]), array)
                for path in paths:
                    _synchronise(path)
                # The names of new files and folders, from the inmost out.
                for folder in sorted({up for path in paths for up in path.parents}, reverse=True):
                    if folder.is_relative_to(self._scores):
                        _synchronise(folder)

            return assign

        layout = np.load(self._scores, mmap_mode="r")
        start, (row_stride, stride) = layout.offset, layout.strides
        # Not through the map: where a write into one fails, the process is killed without a word.
        file = files.enter_context(self._scores.open("r+b"))

        def write(row: int, column: int, chunk: NDArray[Any]) -> None:
            for number, values in enumerate(np.ascontiguousarray(chunk), row):
                file.seek(start + number * row_stride + column * stride)
                file.write(values.data)
            file.flush()
            os.fsync(file.fileno())

        return write

    def _finished(self) -> set[Chunk]:
        path = self.folder / _JOURNAL
        text = path.read_bytes() if path.exists() else b""
        found = re.findall(rb"^(\d+) (\d+) (\d+) (\d+)\n", text, re.MULTILINE)
        done = [(int(row), int(column), int(rows), int(columns)) for row, column, rows, columns in found]
        if self._zarr is not None:
            # What has no file would be read as the fill value.
            array = self._zarr.open_array(self._scores, mode="r")
            files = set(self._scores.rglob("*"))
            done = [chunk for chunk in done if files.issuperset(self._zarr_files(chunk, array))]
        whole = b"".join(map(_line, done))
        if whole != text:
            # A line that an interruption tore, too: the next one must not be joined to it.
            self._replace(_JOURNAL, lambda file: file.write(whole))
        return set(done)

    def _zarr_files(self, chunk: Chunk, array: Any) -> list[Path]:
        """The files that hold a chunk of scores."""
        row, column, rows, columns = chunk
        height, width = array.chunks
        return [
            self._scores / array.metadata.encode_chunk_key((i, j))
            for i in range(row // height, -(-(row + rows) // height))
            for j in range(column // width, -(-(column + columns) // width))
        ]

    def _replace(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        """Write a file under another name first: under its own it is whole or not there."""
        path, part = self.folder / name, self.folder / f"{name}.part"
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (StoreError, StoreMismatch):
            raise
        except OSError as error:
            raise StoreError(
                f"Cannot use {self.folder}: {error}. Expected a folder that can be written, with room for "
                "the scores. Make room, or pass another out=…; finished chunks are kept, and the same call "
                "goes on after them."
            ) from error
        except (ValueError, KeyError, EOFError, BadZipFile) as error:
            raise StoreError(
                f"{self.folder} is damaged ({type(error).__name__}: {error}); expected the files of an "
                "earlier run as it left them. Delete the folder, or pass another out=…."
            ) from error


def _line(chunk: Chunk) -> bytes:
    return (" ".join(map(str, chunk)) + "\n").encode()


def _synchronise(path: Path) -> None:
    """Let a file, or the names in a folder, reach the disk; Windows does not know that of a folder."""
    if sys.platform == "win32" and path.is_dir():
        return
    file = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _products(row: int) -> str:
    return f"products-{row:08d}.npz"


def _reserve(path: Path) -> None:
    """Take the room for a file at once, where the system can: better before the work than in the middle."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise PackageNotInstalled("out='….zarr'", "zarr", "pip install 'ihvp[influence]'") from error
    return zarr
