"""Named arrays with a few words about them, in one file that is whole or refused."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ihvp.arguments import check_path
from ihvp.digest import digest
from ihvp.errors import DataError, InvalidOption, MissingFile, PackageNotInstalled, StoreError
from ihvp.files import replace
from ihvp.packages import required

# The last bytes of a file are the digest of those before.
_CHECKSUM = 16


def save_arrays(path: str | Path, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, str]) -> None:
    """Write arrays to a file, ``.npz`` or ``.safetensors``, which is whole or not there.

    Another ending is an InvalidOption, a missing safetensors a PackageNotInstalled, and a file that cannot be
    written a StoreError.
    """
    check_array_file("path", path)
    write = _write_safetensors if _is_safetensors(path) else _write_npz
    try:
        replace(Path(path), lambda file: write(file, arrays, json.dumps(dict(about))))
    except OSError as error:
        raise StoreError(
            f"Cannot write {path}: {error}. Expected a folder that is there and can be written, with "
            "room for the file. Make the folder or room, or pass another path."
        ) from error


def load_arrays(path: str | Path, kind: str, writer: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Read what :func:`save_arrays` wrote.

    DataError says that a file is of another ``kind``, or not what a ``writer`` wrote; MissingFile or
    StoreError, that it is not there, or cannot be read.
    """
    check_array_file("path", path)
    read = _read_safetensors if _is_safetensors(path) else _read_npz
    try:
        content = np.memmap(path, np.uint8, "r")
        if content[-_CHECKSUM:].tobytes() != digest(content[:-_CHECKSUM]):
            raise ValueError("its checksum is another")
        arrays, about = read(Path(path))
        return arrays, {**json.loads(about)}
    except PackageNotInstalled:
        raise
    except OSError as error:
        missing = MissingFile if isinstance(error, FileNotFoundError) else StoreError
        raise missing(f"Cannot read {path}: {error}. Expected a file that {writer} wrote.") from error
    except Exception as error:
        # Each format has exceptions of its own for a file that is torn or of another kind.
        raise not_of_this_kind(path, kind, writer, error) from error


def not_of_this_kind(path: str | Path, kind: str, writer: str, error: Exception) -> DataError:
    """The error for a file that holds something else."""
    return DataError(
        f"{path} holds no {kind} ({type(error).__name__}: {error}); expected a file that {writer} wrote."
    )


def _write_npz(file: BinaryIO, arrays: Mapping[str, NDArray[Any]], about: str) -> None:
    np.savez(file, allow_pickle=False, **{**arrays, _ABOUT: np.asarray(about)})
    # As the archive's comment, which is the last that it has; its length is before it.
    file.seek(-2, os.SEEK_END)
    file.write(_CHECKSUM.to_bytes(2, "little"))
    file.flush()
    file.write(digest(np.memmap(file, np.uint8, "r")))


def _write_safetensors(file: BinaryIO, arrays: Mapping[str, NDArray[Any]], about: str) -> None:
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # Bytes come after all wider numbers.
    contiguous[_SUM] = np.zeros(_CHECKSUM, np.uint8)
    content = memoryview(_safetensors("safetensors.numpy").save(contiguous, {_ABOUT: about}))[:-_CHECKSUM]
    file.writelines((content, digest(content)))


# Names that no array has.
_ABOUT, _SUM = "about", "checksum"


def check_array_file(option: str, path: str | Path) -> None:
    """Refuse what is no path of a file that :func:`save_arrays` can write."""
    check_path(option, path)
    if Path(path).suffix not in (".npz", ".safetensors"):
        raise InvalidOption(option, path, "a file name that ends in .npz or .safetensors")


def _is_safetensors(path: str | Path) -> bool:
    return Path(path).suffix == ".safetensors"


def _read_npz(path: Path) -> tuple[dict[str, Any], str]:
    with np.load(path, allow_pickle=False) as arrays:
        found = dict(arrays)
    return found, str(found.pop(_ABOUT))


def _read_safetensors(path: Path) -> tuple[dict[str, Any], str]:
    with _safetensors("safetensors").safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        return {name: file.get_tensor(name) for name in file.keys() if name != _SUM}, metadata[_ABOUT]  # noqa: SIM118


def _safetensors(module: str) -> Any:
    return required(module, "save", "pip install 'ihvp[influence]', or save to .npz")
