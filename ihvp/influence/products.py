"""The inverse products of test points, which can be kept: new training data needs no new solve."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ihvp.arguments import check_path
from ihvp.errors import DataError, InvalidOption, MissingFile, PackageNotInstalled, StoreError


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
        path, vectors = Path(path), np.ascontiguousarray(self.vectors)
        model = json.dumps(dict(self.model))
        if _is_safetensors(path):
            metadata = {"residual": repr(self.residual), "model": model}
            content = _safetensors().save({"vectors": vectors}, metadata)
            _replace(path, lambda file: file.write(content))
        else:
            _replace(path, lambda file: np.savez(file, vectors=vectors, residual=self.residual, model=model))

    @classmethod
    def load(cls, path: str | Path) -> InverseProducts:
        """Read what :meth:`save` wrote.

        Raises
        ------
        DataError
            The file holds something else.
        MissingFile, StoreError
            It is not there, or cannot be read.
        """
        check_path("path", path)
        path = Path(path)
        read = _read_safetensors if _is_safetensors(path) else _read_npz
        try:
            vectors, residual, model = read(path)
            return cls(vectors, float(residual), json.loads(str(model)))
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


def _is_safetensors(path: Path) -> bool:
    if path.suffix not in (".npz", ".safetensors"):
        raise InvalidOption("path", str(path), "a file name that ends in .npz or .safetensors")
    return path.suffix == ".safetensors"


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under another name first: under its own it is whole, or what it was."""
    part = path.with_name(f"{path.name}.part")
    try:
        try:
            with part.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(
            f"Cannot write {path}: {error}. Expected a folder that is there and can be written, with room "
            "for the file. Make the folder or room, or pass another path."
        ) from error


def _read_npz(path: Path) -> tuple[Any, Any, Any]:
    # numpy leaves a file open where it finds it torn.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
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
    return _Safetensors(safetensors.safe_open, safetensors.numpy.save)


@dataclass(frozen=True)
class _Safetensors:
    safe_open: Any
    save: Any
