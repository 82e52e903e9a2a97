"""The array of a store on the disk, in numpy's format or in zarr's.

Both make the head of their files anew where it is not as it is to be: the numbers have checksums elsewhere.
"""

from __future__ import annotations

import errno
import io
import math
import os
import sys
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp.files import replace
from ihvp.packages import required

Chunk = tuple[int, int, int, int]
"""The first row, the first column, and the numbers of rows and columns."""


class NumpyFile:
    """``….npy``: a head that follows from shape and dtype, and the numbers; ``files`` closes it."""

    def __init__(self, path: Path, shape: tuple[int, int], dtype: np.dtype[Any], files: ExitStack) -> None:
        self.path, head = path, io.BytesIO()
        description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(head, description)
        size = head.tell() + math.prod(shape) * dtype.itemsize
        is_new = not path.exists()
        # Not through the map: where a write into one fails, the process is killed without a word. Nor through
        # a buffer, which would write what another process has written since as it was before.
        self._file: FileIO = files.enter_context(path.open("w+b" if is_new else "r+b", buffering=0))
        try:
            if path.stat().st_size != size or self._file.read(head.tell()) != head.getvalue():
                self._put(0, head.getvalue())
                self._file.truncate(size)
                _reserve(self._file, size)
        except BaseException:
            if is_new:
                path.unlink()
            raise
        self._map = np.load(path, mmap_mode="r")

    def write(self, row: int, column: int, chunk: NDArray[Any]) -> None:
        """Put a chunk in its place and on the disk: a run that is killed afterwards does not lose it."""
        row_stride, stride = self._map.strides
        for number, values in enumerate(np.ascontiguousarray(chunk), row):
            self._put(self._map.offset + number * row_stride + column * stride, values.view(np.uint8).data)
        os.fsync(self._file.fileno())

    def _put(self, place: int, content: bytes | memoryview) -> None:
        self._file.seek(place)
        if self._file.write(content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def read(self, chunk: Chunk) -> NDArray[Any] | None:
        """What is there now, whatever it is; None where it cannot be read."""
        row, column, rows, columns = chunk
        found: NDArray[Any] = self._map[row : row + rows, column : column + columns]
        return found

    def forget(self, chunk: Chunk) -> None:
        """Take away what of it cannot be read, and would be in the way of other chunks."""

    def whole(self) -> Any:
        """All of it, read-only."""
        return self._map


class ZarrFolder:
    """``….zarr``: a document that follows from shape, dtype and chunk, and files of such chunks."""

    def __init__(
        self, path: Path, shape: tuple[int, int], dtype: np.dtype[Any], chunk: tuple[int, int]
    ) -> None:
        zarr, self.path = import_zarr(), path
        documents: dict[str, Any] = {}
        zarr.create_array(
            documents,
            shape=shape,
            dtype=dtype,
            chunks=tuple(max(1, min(pair)) for pair in zip(chunk, shape, strict=True)),
            # zarr writes no file for a chunk of nothing but the fill value, which zeros may be.
            fill_value=np.nan,
            compressors=[zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec()],
        )
        path.mkdir(exist_ok=True)
        head, content = path / "zarr.json", documents["zarr.json"].to_bytes()
        if not head.exists() or head.read_bytes() != content:
            replace(head, lambda file: file.write(content))
        self._array = zarr.open_array(path, mode="r+")

    def write(self, row: int, column: int, chunk: NDArray[Any]) -> None:
        self._array[row : row + chunk.shape[0], column : column + chunk.shape[1]] = chunk
        paths = self._files((row, column, *chunk.shape))
        for path in paths:
            _synchronise(path)
        # The names of new files and folders, from the inmost out.
        for folder in sorted({up for path in paths for up in path.parents}, reverse=True):
            if folder.is_relative_to(self.path):
                _synchronise(folder)

    def read(self, chunk: Chunk) -> NDArray[Any] | None:
        row, column, rows, columns = chunk
        try:
            found: NDArray[Any] = self._array[row : row + rows, column : column + columns]
        except OSError:
            raise
        except Exception:  # its own checksum is another, or a codec fails in its own way
            return None
        return found

    def forget(self, chunk: Chunk) -> None:
        for path, part in self._files(chunk).items():
            if self.read(part) is None:
                path.unlink()

    def whole(self) -> Any:
        return import_zarr().open_array(self.path, mode="r")

    def _files(self, chunk: Chunk) -> dict[Path, Chunk]:
        """The files that hold a chunk of scores, and what each of them holds."""
        row, column, rows, columns = chunk
        height, width = self._array.chunks
        return {
            self.path / self._array.metadata.encode_chunk_key((i, j)): (i * height, j * width, height, width)
            for i in range(row // height, -(-(row + rows) // height))
            for j in range(column // width, -(-(column + columns) // width))
        }


def import_zarr() -> Any:
    """The package, or PackageNotInstalled."""
    return required("zarr", "out='….zarr'", "pip install 'ihvp[influence]'")


def _synchronise(path: Path) -> None:
    """Let a file, or the names in a folder, reach the disk; Windows does not know that of a folder."""
    if sys.platform == "win32" and path.is_dir():
        return
    file = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _reserve(file: FileIO, size: int) -> None:
    """Take the room for a file at once, where the system can: better before the work than in the middle."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
