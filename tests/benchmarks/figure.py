"""The figure: other libraries' times in units of ours."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from tests.benchmarks.rows import Row

# Blue and vermilion of Okabe and Ito, which every kind of colour vision tells apart.
_FASTER, _SLOWER = "#0072B2", "#D55E00"
# In units of a line: from a dot to the name above it, and to one that would touch its neighbour's.
_ABOVE, _BELOW = 0.14, -0.46
# Two names side by side take a factor of so much on the axis.
_APART = 2.3
# Characters of a line of a problem's name.
_WIDTH = 46
# Names stand over lines.
_BACKGROUND = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}


def draw(rows: Sequence[Row], file: Path) -> None:
    """One line a problem and framework, one dot a rival: to the right of 1 it takes longer than ihvp."""
    from matplotlib import pyplot as plt

    lines = [
        (label, list(rivals)) for label, rivals in groupby((row for row in rows if row.rival), key=_problem)
    ]
    if not lines:
        return
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(lines) + 0.8), layout="constrained")
    for place, (_, rivals) in enumerate(reversed(lines)):
        axes.axhline(place, color="#dddddd", linewidth=0.8, zorder=0)
        last = {_ABOVE: 0.0, _BELOW: 0.0}
        for row in sorted(rivals, key=lambda row: -row.value):
            times = 1 / row.value
            axes.plot(times, place, "o", markersize=6, zorder=3, color=_FASTER if times >= 1 else _SLOWER)
            free = [height for height, other in last.items() if not other or times / other >= _APART]
            height, side = (free[0], "center") if free else (_ABOVE, "left")
            axes.text(times, place + height, row.peer, ha=side, fontsize=8, bbox=_BACKGROUND, zorder=2)
            last[height] = times
    axes.axvline(1.0, color="black", linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.margins(x=0.12)
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if _within(tick, axes.get_xlim())]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(lines)), [label for label, _ in reversed(lines)], fontsize=8)
    axes.set_ylim(-0.7, len(lines) - 0.3)
    axes.set_xlabel("their time / ihvp's time: to the right of 1 ihvp is faster")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _problem(row: Row) -> str:
    device = "" if row.device == "cpu" else " on the GPU"
    return textwrap.fill(f"{row.what} · {row.framework}{device}", _WIDTH)


def _within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]
