"""The inverse products of test points, which can be kept: new training data needs no new solve."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ihvp.arguments import check_path
from ihvp.errors import DataError, InvalidOption, MissingFile, PackageNotInstalled, StoreError
from ihvp.influence.digest import digest
from ihvp.influence.files import replace


@dataclass(frozen=True, eq=False)
class InverseProducts:
    r"""``(H + λI)⁻¹ ∇L(z_j)`` of some test points, each with its certificate.

    Attributes
    ----------
    vectors : ndarray (n_test, P)
        Row j belongs to test point j.
    residual : float
        The largest ``‖∇L − (H + λI) x‖ / ‖∇L‖``, recomputed.
    model : mapping of str to str
        Names and fingerprints of what they depend on: parameters, loss, training data, curvature, damping.
        Products of another model are refused.

    Examples
    --------
    >>> import tempfile
    >>> products = InverseProducts(np.eye(2), residual=1e-9, model={"damping": "0.1"})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     products.save(f"{folder}/products.npz")
    ...     InverseProducts.load(f"{folder}/products.npz").vectors
    array([[1., 0.],
           [0., 1.]])
    """

    vectors: NDArray[Any]
    residual: float
    model: Mapping[str, str]

    def __post_init__(self) -> None:
        vectors: Any = self.vectors
        if not isinstance(vectors, np.ndarray) or vectors.dtype.kind != "f" or vectors.ndim != 2:
            raise InvalidOption("vectors", vectors, "a numpy array (n_test, P) of real numbers")

    def __len__(self) -> int:
        return len(self.vectors)

    def save(self, path: str | Path) -> None:
        """Write them to a file, ``.npz`` or ``.safetensors``, which is whole or not there.

        Raises
        ------
        InvalidOption
            Another ending.
        PackageNotInstalled
            safetensors is missing.
        StoreError
            The file cannot be written.
        """
        check_path("path", path)
        write = self._write_safetensors if _is_safetensors(path) else self._write_npz
        try:
            replace(Path(path), write)
        except OSError as error:
            raise StoreError(
                f"Cannot write {path}: {error}. Expected a folder that is there and can be written, with "
                "room for the file. Make the folder or room, or pass another path."
            ) from error

    def _write_npz(self, file: BinaryIO) -> None:
        np.savez(file, vectors=self.vectors, residual=self.residual, model=json.dumps(dict(self.model)))
        # As the archive's comment, which is the last that it has; its length is before it.
        file.seek(-2, os.SEEK_END)
        file.write(_CHECKSUM.to_bytes(2, "little"))
        file.flush()
        file.write(digest(np.memmap(file, np.uint8, "r")))

    def _write_safetensors(self, file: BinaryIO) -> None:
        # Bytes come after all wider numbers.
        arrays = {"vectors": np.ascontiguousarray(self.vectors), "checksum": np.zeros(_CHECKSUM, np.uint8)}
        metadata = {"residual": repr(self.residual), "model": json.dumps(dict(self.model))}
        content = memoryview(_safetensors().numpy.save(arrays, metadata))[:-_CHECKSUM]
        file.writelines((content, digest(content)))

    @classmethod
    def load(cls, path: str | Path) -> InverseProducts:
        """Read what :meth:`save` wrote.

        Raises
        ------
        DataError
            The file holds something else, or not what was written.
        MissingFile, StoreError
            It is not there, or cannot be read.
        """
        check_path("path", path)
        read = _read_safetensors if _is_safetensors(path) else _read_npz
        try:
            content = np.memmap(path, np.uint8, "r")
            if content[-_CHECKSUM:].tobytes() != digest(content[:-_CHECKSUM]):
                raise ValueError("its checksum is another")
            vectors, residual, model = read(Path(path))
            return cls(vectors, float(residual), {**json.loads(str(model))})
        except PackageNotInstalled:
            raise
        except OSError as error:
            kind = MissingFile if isinstance(error, FileNotFoundError) else StoreError
            text = f"Cannot read {path}: {error}. Expected a file that InverseProducts.save wrote."
            raise kind(text) from error
        except Exception as error:
            # Each format has exceptions of its own for a file that is torn or of another kind.
            raise DataError(
                f"{path} holds no inverse products ({type(error).__name__}: {error}); expected a file that "
                "InverseProducts.save wrote."
            ) from error

    def __repr__(self) -> str:
        tests, size = self.vectors.shape
        return f"InverseProducts(test: {tests:,}, P = {size:,}; residual {self.residual:.1e})"


# The last bytes of a file are the digest of those before.
_CHECKSUM = 16


def _is_safetensors(path: str | Path) -> bool:
    suffix = Path(path).suffix
    if suffix not in (".npz", ".safetensors"):
        raise InvalidOption("path", path, "a file name that ends in .npz or .safetensors")
    return suffix == ".safetensors"


def _read_npz(path: Path) -> tuple[Any, Any, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["vectors"], arrays["residual"], arrays["model"]


def _read_safetensors(path: Path) -> tuple[Any, Any, Any]:
    with _safetensors().safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        return file.get_tensor("vectors"), metadata["residual"], metadata["model"]


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise PackageNotInstalled(
            "InverseProducts", "safetensors", "pip install 'ihvp[influence]', or save to .npz"
        ) from error
    return safetensors
