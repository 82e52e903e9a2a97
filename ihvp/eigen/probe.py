"""What a random start vector proves about eigenvectors that have not been found."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Components beyond this prove all that can be asked for; their squares do not overflow.
_HUGE = 1e100


class Probe:
    r"""Components that a missed eigenvector must have in the vectors of a Lanczos basis.

    Let :math:`r` be a random unit vector, and :math:`u` an eigenvector of eigenvalue λ that is orthogonal to
    what was found before, with :math:`\gamma = u^\top r`. Each product :math:`A v_j = \sum_i t_{ij} v_i +
    \beta v_{j+1}` gives :math:`\lambda\,u^\top v_j = \sum_i t_{ij}\,u^\top v_i + \beta\,u^\top v_{j+1}`, so
    that the components are :math:`u^\top v_j = p_j(\lambda)\,\gamma` with polynomials :math:`p_j` that are
    known, also after restarts. For orthonormal vectors the squares of the components sum to at most 1. Hence
    :math:`\sum_j p_j(\lambda)^2 > 1/\delta^2` rules out every u with :math:`|\gamma| > \delta`. Beyond the
    Ritz values of the basis, p grows with the distance, so that one λ stands for all beyond it (van
    Dorsselaer, Hochstenbach and van der Vorst, "Computing probabilistic bounds for extreme eigenvalues of
    symmetric matrices with the Lanczos method", SIAM Journal on Matrix Analysis and Applications 22, 2000,
    where only the last of the components counts).

    ``places`` are those among the wanted pairs that each of the ``points`` λ belongs to, and ``capacity`` is
    the number of vectors of the basis.
    """

    def __init__(self, points: NDArray[np.float64], places: NDArray[np.intp], capacity: int) -> None:
        self._points, self._places = points, places
        self._components = np.zeros((points.size, capacity))  # relative to γ
        self._next = np.ones(points.size)
        self._seen = np.zeros(points.size)

    def extend(self, column: NDArray[np.float64], norm: float) -> None:
        """Follow a product: its coefficients in the basis, and the norm of the rest."""
        size = column.size
        self._components[:, size - 1] = self._next
        rest = self._points * self._next - self._components[:, :size] @ column
        # A product without a rest leaves no room for a component.
        self._next = np.clip(rest / norm, -_HUGE, _HUGE) if norm > 0 else np.full_like(rest, _HUGE)
        self._seen = np.maximum(self._seen, np.sum(self._components[:, :size] ** 2, axis=1) + self._next**2)

    def rotate(self, rotation: NDArray[np.float64]) -> None:
        """Follow the basis, times ``rotation`` ``(size, m)``."""
        before, size = rotation.shape
        self._components[:, :size] = self._components[:, :before] @ rotation

    def excluded(self, missed: float, dimension: int) -> NDArray[np.bool_]:
        """For each place, whether no eigenvector is missed that would take it, but for this chance.

        |γ| is below δ with a probability of at most δ √(2n/π) in n dimensions.
        """
        delta = missed * (np.pi / 2 / dimension) ** 0.5
        excluded = np.ones(self._places.max() + 1, dtype=bool)
        np.logical_and.at(excluded, self._places, self._seen > 1 / delta**2)
        return excluded
