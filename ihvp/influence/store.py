"""Scores on disk: written chunk by chunk, complete after a crash and a second call."""

from __future__ import annotations

import errno
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp.digest import array_bytes, digest
from ihvp.errors import DataError, IhvpError, StoreError, StoreMismatch
from ihvp.files import replace
from ihvp.influence.array_file import Chunk, NumpyFile, ZarrFolder, import_zarr
from ihvp.influence.caller import level_outside
from ihvp.influence.lock import locked
from ihvp.influence.products import InverseProducts

_MANIFEST, _JOURNAL, _LOCK = "manifest.json", "done.txt", ".lock"

# Of the files of a store; another one's are refused.
_FORMAT = 1


class StoreDamaged(UserWarning):
    """Something in a store is not what was written; it is computed again.

    Examples
    --------
    >>> import tempfile
    >>> import warnings
    >>> import numpy as np
    >>> import ihvp
    >>> x = np.array([[1.0], [-1.0]])
    >>> objective = ihvp.Objective(params=np.zeros(1), data=x, grad=lambda w, x: w - x.mean(axis=0))
    >>> influence = ihvp.Influence(objective)
    >>> with tempfile.TemporaryDirectory() as out, warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     first = np.array(influence.scores(x, out=out))
    ...     np.save(f"{out}/scores.npy", x)
    ...     again = influence.scores(x, out=out)
    >>> [warning.category.__name__ for warning in caught], bool(np.all(first == again))
    (['StoreDamaged'], True)
    """


class Store:
    """A folder with the scores, the inverse products, and a record of what is done.

    =================  ==============================================================================
    ``manifest.json``  the versions of format and library, the shape, and what the scores depend on
    ``scores.npy``     ``(n_test, n_train)``; ``scores.zarr`` where the folder's name ends in ``.zarr``
    ``products-….npz`` the inverse products of a block of test points
    ``done.txt``       a line for each finished chunk of scores: its place and its checksum
    =================  ==============================================================================

    A chunk is in its file, and that on the disk, before its line is written, so that a line is a promise
    whatever ends the run; what has no line is computed again. So is what does not have the checksum of its
    line, which covers what the scores depend on, the place and the numbers: with a ``StoreDamaged`` warning.

    ``chunk`` is the size of the largest one, and ``depends_on`` has names and fingerprints of what the scores
    depend on: in a folder whose scores depend on something else, or are of another format or series of
    versions, that is StoreMismatch. StoreInUse: another run writes to it. StoreError: it cannot be written,
    its manifest is damaged, or the disk has no room.
    """

    def __init__(
        self,
        folder: str | Path,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        chunk: tuple[int, int],
        depends_on: Mapping[str, str],
    ) -> None:
        self.folder, self._shape = Path(folder), shape
        self._depends_on = {**depends_on, "shape": str(shape), "dtype": dtype.str}
        if is_zarr := self.folder.suffix == ".zarr":
            import_zarr()
            self._depends_on["chunk"] = str(chunk)
        with self._writing(), ExitStack() as files:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.enter_context(locked(self.folder / _LOCK))
            self._identify()
            self._array = (
                ZarrFolder(self.folder / "scores.zarr", shape, dtype, chunk)
                if is_zarr
                else NumpyFile(self.folder / "scores.npy", shape, dtype, files)
            )
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
            return self._array.whole()

    def write(self, row: int, column: int, chunk: NDArray[Any]) -> None:
        """Keep a chunk of scores, whose first entry is at ``(row, column)``."""
        key = (row, column, chunk.shape[0], chunk.shape[1])
        checksum = self._checksum(key, chunk)
        with self._writing():
            self._array.write(row, column, chunk)
            line = _line(key, checksum)
            if self._journal.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._journal.fileno())
        self.done[key] = checksum

    def products(self, row: int, shape: tuple[int, int]) -> tuple[NDArray[Any], float] | None:
        """The kept inverse products of the test points from ``row`` on, and their residual."""
        path = self.folder / _products(row)
        with self._writing():
            try:
                kept = InverseProducts.load(path)
            except FileNotFoundError:
                return None
            except DataError as error:
                self._warn(f"{path.name} is not what was written ({error.__cause__})")
                return None
        if kept.model != {**self._depends_on, "first": str(row)} or kept.vectors.shape[1] != shape[1]:
            self._warn(f"{path.name} is of another run")
            return None
        # Where the solves were of other widths.
        return (kept.vectors, kept.residual) if kept.vectors.shape == shape else None

    def keep_products(self, row: int, vectors: NDArray[Any], residual: float) -> None:
        """Keep the inverse products ``(k, P)`` of a block of test points."""
        kept = InverseProducts(vectors, residual, {**self._depends_on, "first": str(row)})
        with self._writing():
            kept.save(self.folder / _products(row))

    def _identify(self) -> None:
        """Compare the manifest, or write one; what a set-up leaves that was interrupted is made anew."""
        from ihvp import __version__

        manifest = {"format": _FORMAT, "ihvp": __version__, **self._depends_on}
        path, content = self.folder / _MANIFEST, _sealed(manifest)
        is_there = path.exists()
        leftovers = {_LOCK, _MANIFEST, f"{_MANIFEST}.part"}
        others = sorted(other.name for other in self.folder.iterdir() if other.name not in leftovers)
        if not others:
            replace(path, lambda file: file.write(content))
        elif not is_there:
            raise StoreError(
                f"{self.folder} holds other files ({', '.join(others[:3])}) and no manifest; expected an "
                "empty folder, a new one, or the store of an earlier run."
            )
        else:
            both = _read_manifest(path), manifest
            found, expected = ({**each, "ihvp": _series(each.get("ihvp"))} for each in both)
            keys = [key for key in {**expected, **found} if found.get(key) != expected.get(key)]
            if keys:
                raise StoreMismatch(str(self.folder), {k: (found.get(k), expected.get(k)) for k in keys})

    def _finished(self) -> dict[Chunk, str]:
        path = self.folder / _JOURNAL
        text = path.read_bytes() if path.exists() else b""
        found, torn = {}, 0
        # An interruption may have torn the last line: the next one must not be joined to it.
        for line in text.split(b"\n")[:-1]:
            match = re.fullmatch(rb"(\d+) (\d+) (\d+) (\d+) ([0-9a-f]{32})", line)
            row, column, rows, columns = map(int, match.groups()[:4]) if match else (0, 0, 0, 0)
            if match and row + rows <= self._shape[0] and column + columns <= self._shape[1]:
                found[row, column, rows, columns] = match[5].decode()
            else:
                torn += 1
        wrong = [chunk for chunk in found if self._now(chunk) != found[chunk]]
        for chunk in wrong:
            del found[chunk]
            self._array.forget(chunk)
        # What a later chunk of another size was written over is no damage.
        lost = [chunk for chunk in wrong if not any(_overlap(chunk, other) for other in found)]
        if lost:
            row, column, rows, columns = min(lost)
            more = f" and {len(lost) - 1:,} more" if len(lost) > 1 else ""
            self._warn(
                f"the scores of test points {row:,} to {row + rows - 1:,} and training examples {column:,} "
                f"to {column + columns - 1:,}{more} in {self._array.path.name} are not what was written"
            )
        elif torn:
            self._warn(f"{torn:,} lines of {_JOURNAL} are not what was written")
        whole = b"".join(_line(*entry) for entry in found.items())
        if whole != text:
            replace(path, lambda file: file.write(whole))
        return found

    def _now(self, chunk: Chunk) -> str | None:
        values = self._array.read(chunk)
        return None if values is None else self._checksum(chunk, values)

    def _checksum(self, chunk: Chunk, values: NDArray[Any]) -> str:
        place = repr((sorted(self._depends_on.items()), chunk)).encode()
        return digest(place, array_bytes(values)).hex()

    def _warn(self, what: str) -> None:
        warnings.warn(
            f"{self.folder}: {what}; expected an earlier run's files. What is missing is computed again.",
            StoreDamaged,
            stacklevel=level_outside(),
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except IhvpError:
            raise
        except (OSError, ValueError) as error:
            raise StoreError(
                f"Cannot use {self.folder}: {error}. Expected a folder that can be written, with room for "
                "the scores. Make room, or pass another out=…; finished chunks are kept, and the same call "
                "goes on after them."
            ) from error


def _line(chunk: Chunk, checksum: str) -> bytes:
    return " ".join(map(str, (*chunk, checksum))).encode() + b"\n"


def _products(row: int) -> str:
    return f"products-{row:08d}.npz"


def _overlap(one: Chunk, other: Chunk) -> bool:
    return all(one[i] < other[i] + other[i + 2] and other[i] < one[i] + one[i + 2] for i in (0, 1))


def _series(version: object) -> str:
    """Of a version its first two numbers: within a series the numbers of results stay the same."""
    return ".".join(str(version).split(".")[:2])


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    checksum = digest(json.dumps(manifest).encode()).hex()
    return json.dumps({**manifest, "checksum": checksum}, indent=1).encode()


def _read_manifest(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    try:
        found: dict[str, Any] = {**json.loads(content)}
        found.pop("checksum", None)
        if _sealed(found) != content:
            raise ValueError("its checksum is another")
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"{path} is damaged ({error}); expected the object that an earlier run wrote, with its checksum. "
            "Delete the folder, or pass another out=…."
        ) from error
    return found
