"""The spectrum of a matrix: some eigenvalues, and the density of all."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp.eigenpairs import Eigenpairs
from ihvp.errors import NothingToDraw
from ihvp.plot.style import HARMS, HELPS, axes

_POINTS = 2000
# Below this part of its peak, a density is not drawn: between eigenvalues it falls to nothing.
_FLOOR = 1e-8


def spectrum(
    eigenpairs: Eigenpairs | None = None, density: Any = None, ax: Any = None, *, width: float | None = None
) -> Any:
    """Eigenvalues as stems, in front of the density of all eigenvalues.

    The density's axis is logarithmic, on which one eigenvalue shows beside millions. A stem ends on the
    density, and that of a pair which is not converged in a hollow point. Without a density all stems are
    equally high; their axis λ is then logarithmic where positive eigenvalues span two decades or more.

    Parameters
    ----------
    eigenpairs : Eigenpairs, optional
    density : ihvp.SpectralDensity, optional
    ax : matplotlib.axes.Axes, optional
    width : float, optional
        The standard deviation to which each of the density's nodes is widened; see
        :meth:`ihvp.SpectralDensity.density`.

    Raises
    ------
    NothingToDraw
        There is neither an eigenvalue nor a density.
    InvalidOption
        ``width`` is no positive number.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> from ihvp import plot
    >>> A = ihvp.Dense(np.diag([0.1, 0.2, 0.3, 5.0]))
    >>> ax = plot.spectrum(ihvp.eigsh(A, k=1), ihvp.spectral_density(A))
    >>> ax.get_yscale(), [text.get_text() for text in ax.get_legend().get_texts()]
    ('log', ['density of all', '1 eigenvalue'])
    """
    values = np.empty(0) if eigenpairs is None else np.asarray(eigenpairs.values)
    if not values.size and density is None:
        raise NothingToDraw(
            "spectrum", "no eigenvalue and no density", "Eigenpairs, a SpectralDensity, or both"
        )
    ax = axes(ax)
    heights, floor = np.ones(values.shape), 0.0
    if density is not None:
        floor = _draw_density(ax, density, values, width)
        heights = np.maximum(density.density(values, width), floor)
    else:
        ax.set_ylim(0, 1.15)
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
        if values.min() > 0 and values.max() >= 100 * values.min():
            ax.set_xscale("log")
    if eigenpairs is not None and values.size:
        _draw_stems(ax, values, heights, floor, np.asarray(eigenpairs.converged))
    ax.set_xlabel("eigenvalue λ")
    ax.legend(loc="upper right", frameon=False)
    return ax


def _draw_density(ax: Any, density: Any, values: NDArray[np.float64], width: float | None) -> float:
    """Fill the density and return where its axis begins."""
    nodes = density.nodes[density.weights > 0]
    low, high = min(nodes.min(), *values, np.inf), max(nodes.max(), *values, -np.inf)
    margin = 0.04 * (high - low) or 0.04 * abs(high) or 0.04
    # The nodes themselves are on the grid, so that no peak is cut off.
    grid = np.union1d(np.linspace(low - margin, high + margin, _POINTS), nodes)
    heights, peaks = density.density(grid, width), density.density(nodes, width)
    floor = max(peaks.min() / 3, _FLOOR * peaks.max())
    ax.set_yscale("log")
    shown = np.maximum(heights, floor)
    ax.fill_between(grid, floor, shown, color=HELPS, alpha=0.25, linewidth=0)
    ax.plot(grid, shown, color=HELPS, linewidth=1, label="density of all")
    ax.set_ylim(floor, 5 * peaks.max())
    ax.set_ylabel("density of eigenvalues [1/λ]")
    return float(floor)


def _draw_stems(
    ax: Any,
    values: NDArray[np.float64],
    heights: NDArray[np.float64],
    floor: float,
    converged: NDArray[np.bool_],
) -> None:
    ax.vlines(values, floor, heights, color=HARMS, linewidth=1)
    name = f"{values.size} eigenvalue{'s' * (values.size > 1)}"
    for some, face, label in ((converged, HARMS, name), (~converged, "white", f"{name}, not converged")):
        if some.any():
            label = label if some.all() else f"{int(some.sum())} {'' if face == HARMS else 'not '}converged"
            ax.plot(
                values[some], heights[some], "o", color=HARMS, markerfacecolor=face, markersize=5, label=label
            )
