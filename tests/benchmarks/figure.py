"""The figure: how far each number is from its bar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.rows import Row

# Blue and vermilion of Okabe and Ito, which every kind of colour vision tells apart.
_MET, _MISSED = "#0072B2", "#D55E00"


def draw(rows: Sequence[Row], file: Path) -> None:
    """One bar a row, in units of its bar; to the left of 1 it is met."""
    from matplotlib import pyplot as plt

    shown = [row for row in rows if row.low is None][::-1]
    if not shown:
        return
    figure, axes = plt.subplots(figsize=(11, 0.24 * len(shown) + 1.2), layout="constrained")
    parts = [max(row.value / row.high, 1e-3) for row in shown if row.high]
    axes.barh(range(len(shown)), parts, color=[_MET if row.met else _MISSED for row in shown], height=0.7)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(min(*parts, 0.1) * 0.8, max(*parts, 1.0) * 1.3)
    labels = [
        f"{row.what} / {row.peer} · {row.framework}{'' if row.device == 'cpu' else ' · GPU'}" for row in shown
    ]
    axes.set_yticks(range(len(shown)), labels, fontsize=7)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlabel("measured, in units of the bar (at most 1 is met)")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(file, dpi=130)
    plt.close(figure)
