"""The demo's picture: the test digit, the training digits behind the prediction, and the proof."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ihvp.cli.attribution import Attribution, Proof, Setting
from ihvp.errors import PackageNotInstalled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Blue and vermilion of Okabe and Ito's palette, which every kind of colour vision tells apart.
_HELPED, _HARMED = "#0072B2", "#B84A00"


def require_matplotlib() -> None:
    """Say at once, not after the work, that the picture cannot be drawn.

    Raises
    ------
    PackageNotInstalled
        matplotlib is missing.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise PackageNotInstalled("ihvp demo", "matplotlib", "pip install 'ihvp[demo]'") from error


def draw(setting: Setting, attribution: Attribution, proof: Proof, path: Path) -> None:
    """Write the picture to ``path`` as PNG."""
    from matplotlib.figure import Figure

    count = len(proof.removed)
    figure = Figure(figsize=(11.5, 3.6), dpi=110, facecolor="white")
    parts: Any = figure.subfigures(1, 2, width_ratios=(1, 3.6))
    left, right = parts
    question, bars = left.subplots(2, 1, height_ratios=(2.4, 1))
    left.subplots_adjust(left=0.06, right=0.9, top=0.84, bottom=0.05, hspace=0.6)

    index = attribution.index
    _show(question, setting.test.picture(index))
    question.set_title(
        f"Test digit {index}: a {setting.test.labels[index]},\n"
        f"read as {setting.predictions[index].argmax()} (loss {attribution.loss:.2f})",
        fontsize=11,
    )
    _compare(bars, proof)

    rows = right.subfigures(2, 1)
    helpful = attribution.influence.most_helpful(count)[0]
    _row(rows[0], setting, helpful, attribution.scores, "Training digits that helped most", _HELPED)
    harmful = attribution.influence.most_harmful(count)[0]
    _row(rows[1], setting, harmful, attribution.scores, "Training digits that harmed most", _HARMED)
    _save(figure, path)


def _compare(axes: Any, proof: Proof) -> None:
    values = [proof.actual, proof.predicted]
    drawn = axes.barh([0, 1], values, color=["#555555", _HARMED], height=0.8)
    labels = [f"{what} {value:+.3f}" for what, value in zip(("actual", "predicted"), values, strict=True)]
    axes.bar_label(drawn, labels, label_type="center", color="white", fontsize=10, fontweight="bold")
    axes.set_title(f"Change of the loss without\nthe {len(proof.removed)} most harmful", fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _row(
    row: Any,
    setting: Setting,
    indices: NDArray[np.intp],
    scores: NDArray[np.floating],
    title: str,
    color: str,
) -> None:
    panels = row.subplots(1, len(indices))
    row.subplots_adjust(left=0.01, right=0.99, top=0.72, bottom=0.1, wspace=0.12)
    row.suptitle(title, x=0.01, y=0.95, ha="left", color=color, fontsize=12, fontweight="bold")
    for axes, index in zip(panels, indices, strict=True):
        _show(axes, setting.train.picture(index))
        axes.set_title(f"a {setting.train.labels[index]}", fontsize=11)
        axes.set_xlabel(f"{scores[index]:+.3f}", color=color, fontsize=10)


def _show(axes: Any, pixels: NDArray[np.float64]) -> None:
    axes.imshow(pixels, cmap="gray_r", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
