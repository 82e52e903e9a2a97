"""The inverse products of test points, which can be kept: new training data needs no new solve."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp.array_store import load_arrays, not_of_this_kind, save_arrays
from ihvp.errors import InvalidOption


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
        about = {"residual": repr(self.residual), "model": json.dumps(dict(self.model))}
        save_arrays(path, {"vectors": self.vectors}, about)

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
        arrays, about = load_arrays(path, "inverse products", "InverseProducts.save")
        try:
            return cls(arrays["vectors"], float(about["residual"]), {**json.loads(about["model"])})
        except Exception as error:  # arrays of something else
            raise not_of_this_kind(path, "inverse products", "InverseProducts.save", error) from error

    def __repr__(self) -> str:
        tests, size = self.vectors.shape
        return f"InverseProducts(test: {tests:,}, P = {size:,}; residual {self.residual:.1e})"
