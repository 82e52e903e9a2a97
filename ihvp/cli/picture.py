"""The demo's picture: the test digit, the training digits behind the prediction, and the proof."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ihvp import plot
from ihvp.cli.attribution import Attribution, Proof, Setting
from ihvp.plot.images import HARMED, show
from ihvp.plot.style import NEUTRAL


def draw(setting: Setting, attribution: Attribution, proof: Proof, path: Path) -> None:
    """Write the picture to ``path`` as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 3.8), dpi=110, facecolor="white", layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(1, 3.6))
    left, right = parts
    question, bars = left.subplots(2, 1, height_ratios=(2.4, 1))

    index = attribution.index
    show(
        question,
        setting.test.picture(index),
        f"Test digit {index}: a {setting.test.labels[index]},\n"
        f"read as {setting.predictions[index].argmax()} (loss {attribution.loss:.2f})",
    )
    _compare(bars, proof)
    plot.influence_panels(
        attribution.influence,
        setting.train.pictures,
        k=len(proof.removed),
        labels=[f"a {label}" for label in setting.train.labels],
        figure=right,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def _compare(axes: Any, proof: Proof) -> None:
    values = [proof.actual, proof.predicted]
    drawn = axes.barh([0, 1], values, color=[NEUTRAL, HARMED], height=0.8)
    labels = [f"{what} {value:+.3f}" for what, value in zip(("actual", "predicted"), values, strict=True)]
    axes.bar_label(drawn, labels, label_type="center", color="white", fontsize=10, fontweight="bold")
    axes.set_title(f"Change of the loss without\nthe {len(proof.removed)} most harmful", fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
