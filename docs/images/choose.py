"""Draws choose.png, the decision figure of the page "Choose": python docs/images/choose.py."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt

QUESTION, ANSWER, EDGE = "#e8eaf6", "#fff3e0", "#37474f"
QUESTIONS = [
    "Does the operator know its inverse?\n(LowRank, FullRank)",
    "Can you go over all the data\nten times or more for a solve?",
    "Is P at most a few thousand,\nwith many right-hand sides?",
    "Is the matrix positive definite?\n(minimum, Gauss–Newton, OPG, or damped)",
    "Does CG take hundreds of steps?",
]
# The answer that leads out to the right, and where to.
EXITS = [
    ("yes", "ClosedForm()", "chosen automatically"),
    ("no", "LiSSA(batch_size=…)", "minibatches: a few per cent, with a standard error"),
    ("yes", "Direct()", "P products once, then a factorisation"),
    ("no", "MINRES(), or more damping", "damping if you expect a minimum"),
    ("yes", 'CG(preconditioner="nystrom")', "a sketch takes out the large eigenvalues"),
]
LAST = ("CG()", "the default")


def box(ax, x, y, width, text, detail, colour):
    ax.text(x, y + (0.13 if detail else 0), text, ha="center", va="center", fontsize=11, zorder=3,
            family="monospace" if detail else None)  # fmt: skip
    if detail:
        ax.text(x, y - 0.17, detail, ha="center", va="center", fontsize=9.5, color=EDGE, zorder=3)
    shape = mpl.patches.FancyBboxPatch(
        (x - width / 2, y - 0.33), width, 0.66, boxstyle="round,pad=0,rounding_size=0.09",
        facecolor=colour, edgecolor=EDGE, linewidth=1,
    )  # fmt: skip
    ax.add_patch(shape)


def arrow(ax, start, end, label, shift):
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": EDGE, "shrinkA": 0, "shrinkB": 0})
    middle = [(a + b) / 2 + s for a, b, s in zip(start, end, shift, strict=True)]
    ax.text(*middle, label, ha="center", va="center", fontsize=10.5, color=EDGE)


def draw() -> plt.Figure:
    fig, ax = plt.subplots(figsize=(9.6, 6.6))
    rows = range(len(QUESTIONS), 0, -1)
    for y, question, (label, answer, detail) in zip(rows, QUESTIONS, EXITS, strict=True):
        box(ax, 2.1, y, 4.0, question, "", QUESTION)
        box(ax, 7.4, y, 4.3, answer, detail, ANSWER)
        arrow(ax, (4.1, y), (5.25, y), label, (0, 0.14))
        arrow(ax, (2.1, y - 0.33), (2.1, y - 0.67), {"yes": "no", "no": "yes"}[label], (0.27, 0))
    box(ax, 2.1, 0, 4.0, *LAST, ANSWER)
    ax.text(7.4, 0, 'Or leave it to solver="auto", which starts\nwith CG and decides by what it meets.',
            ha="center", va="center", fontsize=10.5, color=EDGE)  # fmt: skip
    ax.set(xlim=(0, 9.65), ylim=(-0.45, 5.45))
    ax.set_axis_off()
    fig.subplots_adjust(0.005, 0.005, 0.995, 0.995)
    return fig


if __name__ == "__main__":
    draw().savefig(Path(__file__).with_suffix(".png"), dpi=160)
