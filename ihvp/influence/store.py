"""Scores on disk: written chunk by chunk, complete after a crash and a second call."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp.digest import array_bytes, digest
from ihvp.errors import DataError, IhvpError, MissingFile, StoreError, StoreMismatch
from ihvp.files import locked, replace
from ihvp.influence.array_file import Chunk, NumpyFile, ZarrFolder, import_zarr
from ihvp.influence.blocks import Block
from ihvp.influence.caller import level_outside
from ihvp.influence.products import InverseProducts
from ihvp.objective import Objective
from ihvp.processes import Processes
from ihvp.version import __version__

_MANIFEST = "manifest.json"

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

    Also with other numbers of training examples, called ``name``: one row of the array, whatever its dtype.

    =================  ==============================================================================
    ``manifest.json``  the versions of format and library, the shape, and what the scores depend on
    ``scores.npy``     ``(n_test, n_train)``; ``scores.zarr`` where the folder's name ends in ``.zarr``
    ``products-….npz`` the inverse products of a block of test points
    ``done.txt``       a line for each finished chunk of scores: its place and its checksum; ``done-1.txt``
                       and so on are those of other processes in a run of several
    =================  ==============================================================================

    A chunk is in its file, and that on the disk, before its line is written, so that a line is a promise
    whatever ends the run; what has no line is computed again. So is what does not have the checksum of its
    line, which covers what the scores depend on, the place and the numbers: with a ``StoreDamaged`` warning.

    ``processes`` write to one folder, each its own chunks; the first one makes it and keeps the products.
    ``chunk`` is the size of the largest one, and ``depends_on`` has names and fingerprints of what the scores
    depend on: in a folder whose scores depend on something else, or are of another format or series of
    versions, that is StoreMismatch. StoreInUse: another run writes to it. StoreError: it cannot be written,
    its manifest is damaged, or the disk has no room. ``holds`` names what is kept, its rows and columns.
    """

    def __init__(
        self,
        folder: str | Path,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        chunk: tuple[int, int],
        depends_on: Mapping[str, str],
        processes: Processes,
        holds: tuple[str, str, str] = ("scores", "test points", "training examples"),
    ) -> None:
        self.folder, self._shape, self._processes = Path(folder), shape, processes
        self._holds = holds
        self._depends_on = {
            **depends_on,
            "shape": str(shape),
            "dtype": str(np.lib.format.dtype_to_descr(dtype)),
        }
        if is_zarr := self.folder.suffix == ".zarr":
            import_zarr()
            self._depends_on["chunk"] = str(chunk)
        is_first = processes.rank == 0
        with self._writing(), ExitStack() as files:
            if is_first:
                self.folder.mkdir(parents=True, exist_ok=True)
                files.enter_context(locked(self.folder / _lock(0)))
                for lock in self.folder.glob(_lock("*")):
                    with locked(lock):  # which another process of an earlier run may still hold
                        pass
                self._identify()
            else:
                self._follow(files)
            self._array = (
                ZarrFolder(self.folder / f"{holds[0]}.zarr", shape, dtype, chunk)
                if is_zarr
                else NumpyFile(self.folder / f"{holds[0]}.npy", shape, dtype, files)
            )
            self.done = self._finished() if is_first else _lines(self._read(_journal(0)), shape)[0]
            if is_first:
                self._lead()
            # Unbuffered: what a full disk refuses must not be tried again when the file is closed.
            journal = self.folder / _journal(processes.rank)
            self._journal = files.enter_context(journal.open("ab", buffering=0))
            self._files = files.pop_all()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        with self._writing():
            self._files.close()

    def read(self) -> Any:
        """The scores of all processes, once they are there, read-only: a memory map, or a zarr array."""
        self._processes.each(0)
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
        """The kept inverse products of the test points from ``row`` on, and their residual.

        All processes ask for them, and have them where all can read them.
        """
        found = self._products(row, shape)
        return found if self._processes.each(int(found is not None)).all() else None

    def _products(self, row: int, shape: tuple[int, int]) -> tuple[NDArray[Any], float] | None:
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
        if self._processes.rank:
            return
        kept = InverseProducts(vectors, residual, {**self._depends_on, "first": str(row)})
        with self._writing():
            kept.save(self.folder / _products(row))

    def _identify(self) -> None:
        """Compare the manifest, or write one; what a set-up leaves that was interrupted is made anew."""
        manifest = {"format": _FORMAT, "ihvp": __version__, **self._depends_on}
        path, content = self.folder / _MANIFEST, _sealed(manifest)
        is_there = path.exists()
        leftovers = {_MANIFEST, f"{_MANIFEST}.part"}
        others = sorted(
            other.name
            for other in self.folder.iterdir()
            if other.name not in leftovers and not other.name.startswith(_lock(0))
        )
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

    def _lead(self) -> None:
        """Let the other processes in, by files that tell them that this is the folder."""
        token = secrets.randbits(52)
        for rank in range(1, self._processes.count):
            replace(self.folder / _lock(rank), lambda file: file.write(b"%d" % token))
        self._processes.agreed(token)

    def _follow(self, files: ExitStack) -> None:
        """Wait until the first process has made the folder, and hold a lock of one's own."""
        rank = self._processes.rank
        token, lock = int(self._processes.agreed(0)), _lock(rank)
        if self._read(lock) != b"%d" % token:
            raise StoreError(
                f"The process of rank {rank} does not find what that of rank 0 wrote to {self.folder}; "
                "expected one folder that all processes see. Pass the path of a shared file system."
            )
        files.enter_context(locked(self.folder / lock))

    def _read(self, name: str) -> bytes:
        path = self.folder / name
        return path.read_bytes() if path.exists() else b""

    def missing(
        self,
        row: int,
        rows: int,
        windows: Iterable[tuple[Block, slice]],
        training: Objective,
        advance: Callable[[int], object],
    ) -> Iterator[tuple[Block, slice]]:
        """Those of this process's blocks of training examples whose scores in these rows are not there.

        The numbers of those that are there advance a progress bar.
        """
        done = self._finished_columns(row, rows)
        among, before = self._processes, training.first
        # Of examples that each process has all of, they take turns.
        is_spread = training.processes.count == among.count
        for number, (block, own) in enumerate(windows):
            if not is_spread and number % among.count != among.rank:
                continue
            start, count = before + block.first, own.stop - own.start
            if any(begin <= start and start + count <= end for begin, end in done):
                advance(rows * count)
            else:
                yield block, own

    def _finished_columns(self, row: int, rows: int) -> list[tuple[int, int]]:
        """Where the columns begin and end whose scores in these rows are there."""
        found: list[tuple[int, int]] = []
        for start, stop in sorted((c, c + n) for r, c, m, n in self.done if (r, m) == (row, rows)):
            if found and start <= found[-1][1]:
                start, stop = found[-1][0], max(found.pop()[1], stop)
            found.append((start, stop))
        return found

    def _finished(self) -> dict[Chunk, str]:
        """The chunks that this and the other processes of an earlier run have written."""
        path, others = self.folder / _journal(0), sorted(self.folder.glob(_journal("*")))
        text = b"".join(self._read(file.name) for file in (path, *others))
        found, torn = _lines(text, self._shape)
        wrong = [chunk for chunk in found if self._now(chunk) != found[chunk]]
        for chunk in wrong:
            del found[chunk]
            self._array.forget(chunk)
        # What a later chunk of another size was written over is no damage.
        lost = [chunk for chunk in wrong if not any(_overlap(chunk, other) for other in found)]
        if lost:
            row, column, rows, columns = min(lost)
            what, down, across = self._holds
            more = f" and {len(lost) - 1:,} more" if len(lost) > 1 else ""
            self._warn(
                f"the {what} of {down} {row:,} to {row + rows - 1:,} and {across} {column:,} "
                f"to {column + columns - 1:,}{more} in {self._array.path.name} are not what was written"
            )
        elif torn:
            self._warn(f"{torn:,} lines of {_journal(0)} are not what was written")
        whole = b"".join(_line(*entry) for entry in found.items())
        if whole != text or others:
            replace(path, lambda file: file.write(whole))
        for file in others:
            file.unlink()
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
                f"the {self._holds[0]}. Make room, or pass another out=…; finished chunks are kept, and the "
                "same call goes on after them."
            ) from error


def read_store(folder: Path, name: str) -> tuple[dict[str, Any], np.memmap[Any, Any]]:
    """What a finished store depends on, and its array, read-only; checksums of numbers are not looked at.

    MissingFile says that there is no such store; StoreError, that it is damaged, or not finished.
    """
    if not (folder / _MANIFEST).exists():
        raise MissingFile(f"{folder} holds no store of {name}; expected the folder of an earlier run.")
    manifest = _read_manifest(folder / _MANIFEST)
    try:
        found: np.memmap[Any, Any] = np.load(folder / f"{name}.npy", mmap_mode="r")
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{folder} holds no {name} that can be read ({error}); run the same call again."
        ) from error
    text = b"".join(path.read_bytes() for path in sorted(folder.glob(_journal("*"))))
    text += (folder / _journal(0)).read_bytes() if (folder / _journal(0)).exists() else b""
    columns = np.zeros(found.shape[1] + 1, np.int64)
    for _, column, _, width in _lines(text, found.shape)[0]:
        columns[column] += 1
        columns[column + width] -= 1
    missing = int(np.count_nonzero(np.cumsum(columns)[:-1] == 0))
    if missing:
        raise StoreError(
            f"{folder} lacks {missing:,} of {found.shape[1]:,} examples; expected a finished run. The same "
            "call that began it goes on where it stopped."
        )
    return manifest, found


def _line(chunk: Chunk, checksum: str) -> bytes:
    return " ".join(map(str, (*chunk, checksum))).encode() + b"\n"


def _lines(text: bytes, shape: tuple[int, int]) -> tuple[dict[Chunk, str], int]:
    """The chunks of a journal and their checksums, and the number of its lines that are no promise."""
    found, torn = {}, 0
    # An interruption may have torn the last line: the next one must not be joined to it.
    for line in text.split(b"\n")[:-1]:
        match = re.fullmatch(rb"(\d+) (\d+) (\d+) (\d+) ([0-9a-f]{32})", line)
        row, column, rows, columns = map(int, match.groups()[:4]) if match else (0, 0, 0, 0)
        if match and row + rows <= shape[0] and column + columns <= shape[1]:
            found[row, column, rows, columns] = match[5].decode()
        else:
            torn += 1
    return found, torn


def _journal(rank: int | str) -> str:
    return f"done-{rank}.txt" if rank else "done.txt"


def _lock(rank: int | str) -> str:
    return f".lock-{rank}" if rank else ".lock"


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
