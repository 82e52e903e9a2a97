"""Scores on disk: written chunk by chunk, complete after a crash and a second call."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ihvp.errors import PackageNotInstalled, StoreError, StoreMismatch

_MANIFEST, _JOURNAL, _SCORES = "manifest.json", "done.txt", "scores"


class Store:
    """A folder with the scores, the inverse products, and a record of what is done.

    =================  ==============================================================================
    ``manifest.json``  the shape, and what the scores depend on
    ``scores.npy``     ``(n_test, n_train)``; ``scores.zarr`` where the folder's name ends in ``.zarr``
    ``products-….npz`` the inverse products of a block of test points
    ``done.txt``       a line for each finished chunk of scores
    =================  ==============================================================================

    A chunk is on the disk before its line is, so that a line is a promise whatever interrupts the run; what
    has no line is computed again.

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

    Raises
    ------
    StoreMismatch
        The folder holds scores that depend on something else.
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
        manifest = {"shape": list(shape), "dtype": dtype.str, "chunk": list(chunk), **depends_on}
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            if (self.folder / _MANIFEST).exists():
                self._compare(manifest)
            else:
                self._refuse_foreign()
                self._create(shape, dtype, chunk)
                # Last: a folder with a manifest is complete.
                self._replace(_MANIFEST, lambda file: file.write(json.dumps(manifest, indent=1).encode()))
            self._array = self._open("r+")
            self.done = self._finished()
            self._journal = (self.folder / _JOURNAL).open("ab")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self._journal.close()

    def read(self) -> Any:
        """The scores, read-only: a memory map, or a zarr array."""
        return self._open("r")

    def write(self, row: int, column: int, chunk: NDArray[Any]) -> None:
        """Keep a chunk of scores, whose first entry is at ``(row, column)``."""
        rows, columns = slice(row, row + chunk.shape[0]), slice(column, column + chunk.shape[1])
        with self._writing():
            self._array[rows, columns] = chunk
            if self._zarr is None:
                self._array.flush()
            # One write of less than a page: the line is there or not.
            self._journal.write(f"{row} {column}\n".encode())
            self._journal.flush()
            os.fsync(self._journal.fileno())
        self.done.add((row, column))

    def products(self, row: int) -> tuple[NDArray[Any], float] | None:
        """The kept inverse products of the block of test points from ``row`` on, and their residual."""
        path = self.folder / _products(row)
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as file:
            return file["vectors"], float(file["residual"])

    def keep_products(self, row: int, vectors: NDArray[Any], residual: float) -> None:
        """Keep the inverse products ``(k, P)`` of a block of test points."""
        with self._writing():
            self._replace(_products(row), lambda file: np.savez(file, vectors=vectors, residual=residual))

    def _compare(self, manifest: Mapping[str, Any]) -> None:
        found = json.loads((self.folder / _MANIFEST).read_text())
        differing = [key for key in {**manifest, **found} if manifest.get(key) != found.get(key)]
        if differing:
            raise StoreMismatch(
                str(self.folder), {key: (found.get(key), manifest.get(key)) for key in differing}
            )

    def _refuse_foreign(self) -> None:
        leftovers = {f"{_SCORES}.npy", f"{_SCORES}.zarr", _JOURNAL}
        # What an interrupted set-up left is made anew; anything else is somebody's.
        foreign = [p.name for p in self.folder.iterdir() if p.name not in leftovers and p.suffix != ".part"]
        if foreign:
            raise StoreError(
                f"{self.folder} holds other files ({', '.join(sorted(foreign)[:3])}) and no manifest; "
                "expected an empty folder, a new one, or the store of an earlier run."
            )

    def _create(self, shape: tuple[int, int], dtype: np.dtype[Any], chunk: tuple[int, int]) -> None:
        (self.folder / _JOURNAL).unlink(missing_ok=True)
        if self._zarr is not None:
            self._zarr.create_array(
                self.folder / f"{_SCORES}.zarr",
                shape=shape,
                dtype=dtype,
                chunks=tuple(max(1, min(pair)) for pair in zip(chunk, shape, strict=True)),
                overwrite=True,
            )
            return
        path = self.folder / f"{_SCORES}.npy"
        np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()
        # A write into a map of a full disk kills the process, so the room is taken at once.
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)

    def _open(self, mode: Any) -> Any:
        if self._zarr is not None:
            return self._zarr.open_array(self.folder / f"{_SCORES}.zarr", mode=mode)
        return np.load(self.folder / f"{_SCORES}.npy", mmap_mode=mode)

    def _finished(self) -> set[tuple[int, int]]:
        path = self.folder / _JOURNAL
        text = path.read_bytes() if path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            # The line that an interruption tore; the next one must not be joined to it.
            self._replace(_JOURNAL, lambda file: file.write(whole))
        pairs = (line.split() for line in whole.decode().splitlines())
        return {(int(row), int(column)) for row, column in pairs}

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
                f"Cannot write to {self.folder}: {error}. Expected a folder that can be written, with room "
                "for the scores. Free some, or pass another out=…; finished chunks are kept, and the same "
                "call goes on after them."
            ) from error


def _products(row: int) -> str:
    return f"products-{row:08d}.npz"


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise PackageNotInstalled("out='….zarr'", "zarr", "pip install 'ihvp[influence]'") from error
    return zarr
