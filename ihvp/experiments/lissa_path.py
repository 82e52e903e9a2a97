"""LiSSA's path in the plane of the notebooks' toy, for several settings beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ihvp
from ihvp import plot
from ihvp._problems import SeedToy
from ihvp.algebra import to_numpy
from ihvp.errors import Diverged
from ihvp.experiments import choice, figure, finding

COLUMNS = ("scale", "damping", "step", "x1", "x2")
DEPTH = 100
V = np.ones(2)

# The notebooks' products are central differences with this fixed step.
SEED_STEP = 1e-2
# Of an end point, which is about 1 in size. The notebooks' own rounding, of float32, is 2e-6.
AGREEMENT = 1e-5

_WINDOW = ((-0.05, 1.4), (-0.15, 0.25))


@dataclass(frozen=True)
class Path2D:
    """The iterates ``s_j / σ`` of one setting, as far as they are finite, and the answer beside them."""

    # scale, damping: σ and λ
    scale: float
    damping: float
    points: NDArray[np.float64]  # (n, 2), from v / σ on
    exact: NDArray[np.float64]  # (2,), (H + λI)⁻¹ v

    def rows(self) -> list[tuple[float, float, int, float, float]]:
        """What the table says of it."""
        return [
            (self.scale, self.damping, step, float(x1), float(x2))
            for step, (x1, x2) in enumerate(self.points)
        ]


def toy(backend: str | None = None, step: float | None = None) -> ihvp.Hessian:
    """The Hessian of the toy, by differences of the given ``step`` or as the backend differentiates best."""
    problem: Any = SeedToy()
    if step is None:
        return ihvp.Hessian(choice.objective(problem, backend or "numdiff"))
    factory: Any = choice.plugins("numdiff")[0].factory
    given = {"params": problem.params, "data": problem.batch, "grad": problem.gradient}
    return ihvp.Hessian(ihvp.Objective(**given, backend=factory(step=step)))


def follow(H: ihvp.Hessian, scale: float, damping: float = 0.0) -> Path2D:
    """The recursion step by step, for :data:`DEPTH` steps or until it leaves the plane."""
    s, points = V, [V / scale]
    for _ in range(DEPTH):
        s = V + (1 - damping / scale) * s - to_numpy(H @ H.space.asarray(s)) / scale
        # Where the recursion diverges, a dozen steps leave nothing to draw.
        if np.linalg.norm(s) > 1e6:
            break
        points.append(s / scale)
    exact = np.linalg.solve(SeedToy().hessian() + damping * np.eye(2), V)
    return Path2D(scale, damping, np.array(points), np.asarray(exact, dtype=np.float64))


def end(H: ihvp.Hessian, scale: float, damping: float = 0.0) -> NDArray[np.float64]:
    """The answer of :class:`~ihvp.LiSSA` after :data:`DEPTH` steps, whatever its residual."""
    solver = ihvp.LiSSA(scale=scale, recursion_depth=DEPTH, rtol=None)
    return np.asarray(to_numpy(ihvp.solve(H, H.space.asarray(V), damping, solver).x), dtype=np.float64)


def divergence(H: ihvp.Hessian, scale: float) -> Diverged | None:
    """The error that :class:`~ihvp.LiSSA` raises for this scale, if it does."""
    try:
        end(H, scale)
    except Diverged as error:
        return error
    return None


def deviation(
    H: ihvp.Hessian, expected: dict[tuple[float, float], tuple[float, float]]
) -> tuple[float, dict[tuple[float, float], NDArray[np.float64]]]:
    """How far the end points are from the expected ones at most, and the end points, by scale and damping."""
    ends = {setting: end(H, *setting) for setting in expected}
    return max(float(np.abs(ends[setting] - expected[setting]).max()) for setting in expected), ends


def write(out: Path, name: str, paths: Sequence[Path2D]) -> tuple[Path, Path]:
    """All points of all paths, and a picture of each, titled by what the experiment is named for."""
    rows = [row for each in paths for row in each.rows()]
    titles = [f"{name} {getattr(each, name):g}" for each in paths]
    return finding.write(out, name, COLUMNS, rows, _draw(paths, titles))


def _draw(paths: Sequence[Path2D], titles: Sequence[str]) -> Any:
    """A panel for each path, in the same window, but for a path that diverges."""
    canvas, axes = figure.panels(2, 2, height=3.4)
    for ax, each, title in zip(axes.flat, paths, titles, strict=True):
        plot.lissa_path(each.points, each.exact, ax, xlim=_WINDOW[0], ylim=_WINDOW[1])
        ax.set_title(f"{title}, {ax.get_title()}".removesuffix(", "), fontsize=12)
        if ax is not axes.flat[0]:
            ax.get_legend().remove()
    return canvas
