"""The curvature that an index has by itself: the mean of the outer products of its rows."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp.errors import InvalidOption
from ihvp.processes import Processes


class Gram:
    """``G = 1/N Σ r rᵀ`` of the rows of all processes, and products with ``(G + λI)⁻¹`` for any λ."""

    def __init__(self, rows: Iterable[NDArray[Any]], dim: int, total: int, processes: Processes) -> None:
        matrix, self._eps = np.zeros((dim, dim)), float(np.finfo(np.float64).eps)
        for part in rows:
            matrix += part.T @ part
            self._eps = float(np.finfo(part.dtype).eps)
        self.matrix = processes.sum(matrix) / total

    @cached_property
    def _eigen(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        from scipy.linalg import eigh

        values, vectors = eigh(self.matrix, driver="evd")
        return values, vectors

    def solve(self, rows: NDArray[Any], damping: float) -> tuple[NDArray[np.float64], float]:
        """``(G + λI)⁻¹ y`` of each row y, and the largest residual, relative to y.

        An InvalidOption says that ``G + λI`` is singular up to rounding.
        """
        values, vectors = self._eigen
        # Its products were rounded as the rows are.
        tiny = 10 * self._eps * values[-1]
        if values[0] + damping <= tiny:
            least, start = tiny - min(values[0], 0), max(values.mean() / 1000, 100 * tiny)
            raise InvalidOption(
                "damping",
                damping,
                f"a number above {least:.1e}: the mean of the outer products of the rows is singular. "
                f"{start:.1e} is a start",
            )
        found = (rows @ vectors / (values + damping)) @ vectors.T
        left = rows - found @ self.matrix - damping * found
        norms = np.linalg.norm(rows, axis=1)
        residual = np.divide(np.linalg.norm(left, axis=1), norms, where=norms > 0, out=np.zeros(len(rows)))
        return found, float(residual.max(initial=0.0))
