"""The path of an iteration in the plane."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ihvp.errors import NothingToDraw, VectorError
from ihvp.plot.style import HARMS, HELPS, NEUTRAL, axes

_NUMBERED = (0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
# In points: from a number to its point, and between two numbers.
_OFFSET, _APART = 10.0, 14.0


def lissa_path(
    points: ArrayLike,
    exact: ArrayLike,
    ax: Any = None,
    *,
    xlim: tuple[float, float] | None = None,
    ylim: tuple[float, float] | None = None,
) -> Any:
    """LiSSA's iterates in the plane, some of them numbered, and the exact answer as a star.

    A path that ends further from the answer than it began diverges: its axes are logarithmic away from 0, on
    which each leap has a length that can be seen, and the title says so.

    Parameters
    ----------
    points : array_like (n, 2)
        The iterates ``s_j / scale`` of a problem with two parameters, from ``j = 0`` on. What follows one
        that is not finite is not drawn.
    exact : array_like (2,)
        ``(H + λI)⁻¹ v``.
    ax : matplotlib.axes.Axes, optional
    xlim, ylim : tuple of float, optional
        The window, where several paths are to be compared; not of one that diverges.

    Raises
    ------
    NothingToDraw
        There is no finite point.
    VectorError
        The points do not lie in a plane.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> from ihvp import plot
    >>> H, v = ihvp.Dense(np.array([[8 / 9, 4 / 3], [4 / 3, 8.0]])), np.ones(2)
    >>> depths = [ihvp.LiSSA(scale=10, recursion_depth=depth, rtol=None) for depth in range(1, 30)]
    >>> path = [v / 10, *(ihvp.solve(H, v, solver=solver).x for solver in depths)]
    >>> ax = plot.lissa_path(path, exact=[1.25, -1 / 12])
    >>> [text.get_text() for text in ax.texts]
    ['0', '1', '2', '3', '5', '10', '20']
    """
    path, answer = np.asarray(points, dtype=np.float64), np.asarray(exact, dtype=np.float64)
    if path.ndim != 2 or path.shape[1] != 2 or answer.shape != (2,):
        raise VectorError(
            f"The points have shape {path.shape} and the answer {answer.shape}; expected (n, 2) and (2,), of "
            "a problem with two parameters. Of a larger one, pass the coordinates along two directions."
        )
    finite = np.isfinite(path).all(axis=1)
    path = path[: len(path) if finite.all() else int(finite.argmin())]
    if not len(path):
        raise NothingToDraw("lissa_path", "no finite point", "one or more")
    ax = axes(ax)
    distances = np.linalg.norm(path - answer, axis=1)
    if distances[-1] > distances[0]:
        _make_room(ax, path, near=float(np.linalg.norm(answer)) or 1.0)
    else:
        ax.set(**{name: limits for name, limits in (("xlim", xlim), ("ylim", ylim)) if limits is not None})
    ax.plot(*answer, "*", color=HARMS, markersize=14, label="exact")
    ax.plot(*path.T, "-", color=NEUTRAL, linewidth=0.7)
    ax.plot(*path.T, "o", color=HELPS, markersize=3, label="after j steps")
    _number(ax, path)
    ax.set(xlabel="x₁", ylabel="x₂")
    ax.legend(loc="best", frameon=False)
    return ax


def _make_room(ax: Any, path: NDArray[np.float64], near: float) -> None:
    """Axes that are logarithmic further from 0 than ``near``, with few ticks."""
    ax.set_title("diverges")
    ax.margins(0.1)
    for name, extent in zip("xy", np.abs(path).max(axis=0), strict=True):
        getattr(ax, f"set_{name}scale")("symlog", linthresh=near)
        first = int(np.ceil(np.log10(near)))
        last = max(first, int(np.floor(np.log10(max(extent, near)))))
        # Labels of neighbouring decades would touch.
        ticks = 10.0 ** np.array([(first + last) // 2, last] if last - first > 2 else [last])
        getattr(ax, f"set_{name}ticks")([*-ticks[::-1], 0.0, *ticks])


def _number(ax: Any, path: NDArray[np.float64]) -> None:
    """Write the step beside points, on the outer side of the path's bend, unless another is in the way."""
    ax.autoscale_view()  # what was drawn counts from here on
    places = ax.transData.transform(path) * 72 / ax.figure.dpi
    written = np.empty((0, 2))
    for step in _NUMBERED:
        if step >= len(path):
            break
        offset = _outwards(places, step) * _OFFSET
        place = places[step] + offset
        if len(written) and np.linalg.norm(written - place, axis=1).min() < _APART:
            continue
        written = np.vstack([written, place])
        ax.annotate(
            str(step),
            path[step],
            xytext=offset,
            textcoords="offset points",
            fontsize=9,
            ha="center",
            va="center",
        )


def _outwards(places: NDArray[np.float64], step: int) -> NDArray[np.float64]:
    """A unit vector across the path, away from the points before and after; upwards where it is straight."""
    before, after = places[max(step - 1, 0)], places[min(step + 1, len(places) - 1)]
    along = after - before
    length = float(np.linalg.norm(along))
    if length < 1e-9:
        return np.array([0.0, 1.0])
    across = np.array([-along[1], along[0]]) / length
    bend = float((2 * places[step] - before - after) @ across)
    side = bend if abs(bend) > 0.5 else across[1]
    return np.asarray(across if side > 0 else -across)
