"""Draws rough.png, what scores cost and foretell, of the page "Choose".

It measures first, some minutes: ``.venv/bench/bin/python docs/images/rough.py``, in the environment that
``make bench ONLY=structured`` sets up. With ``--draw`` it takes the numbers of before, in rough.csv.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt

NUMBERS = Path(__file__).with_suffix(".csv")
# Okabe and Ito's colours, which every kind of colour vision tells apart, and markers for print.
OURS, EXACT, PEERS, DOTS = ("#0072B2", "o"), ("#009E73", "s"), ("#D55E00", "^"), ("black", "D")
# The group of each way, its label, and where it goes: points to the right and up, and its alignment.
WAYS = {
    "EK-FAC": (OURS, "EK-FAC", (9, -4, "left")),
    "K-FAC": (OURS, "K-FAC", (-9, -12, "right")),
    "150 examples": (EXACT, "150", (-9, -4, "right")),
    "300 examples": (EXACT, "300", (9, -1, "left")),
    "750 examples": (EXACT, "750", (9, -4, "left")),
    "Gauss–Newton, rtol 1e-1": (EXACT, "all 1,500, rtol 0.1", (9, -4, "left")),
    "Gauss–Newton, rtol 1e-2": (EXACT, "rtol 0.01", (9, -4, "left")),
    "curvlinops": (PEERS, "curvlinops", (-9, -6, "right")),
    "kronfluence": (PEERS, "kronfluence", (9, -4, "left")),
    "pyDVL": (PEERS, "pyDVL", (9, -4, "left")),
    "dot products": (DOTS, "dot products of gradients", (9, -4, "left")),
}
GROUPS = {
    "ihvp, Gauss–Newton over so many examples": EXACT,
    "ihvp, Kronecker factors": OURS,
    "other libraries' EK-FAC": PEERS,
    "no curvature": DOTS,
}


def measure() -> None:
    """Writes the seconds, the LDS and its standard error of each way."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.benchmarks.structured import compare

    found = compare()
    with NUMBERS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["way", "seconds", "lds", "standard error"])
        for name in WAYS:
            writer.writerow(
                [name, f"{found.times[name]:.2f}", f"{found.lds(name):.4f}", f"{found.error(name):.4f}"]
            )


def draw() -> plt.Figure:
    with NUMBERS.open() as file:
        rows = {row["way"]: [float(row[key]) for key in ("seconds", "lds", "standard error")]
                for row in csv.DictReader(file)}  # fmt: skip
    figure, ax = plt.subplots(figsize=(9, 5.4), layout="constrained")
    for name, ((colour, marker), label, (right, up, side)) in WAYS.items():
        seconds, lds, error = rows[name]
        ax.errorbar(seconds, lds, error, color=colour, marker=marker, markersize=7, capsize=3, linewidth=1)
        ax.annotate(label, (seconds, lds), (right, up), textcoords="offset points", ha=side, fontsize=11)
    for label, (colour, marker) in GROUPS.items():
        ax.plot([], [], color=colour, marker=marker, linestyle="", label=label)
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    low, high = low / 1.7, high * 1.7  # for the labels
    ax.set_xlim(low, high)
    ticks = [tick for tick in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= tick <= high]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_ylim(0.0, None)
    ax.set_xlabel("seconds for all 297 × 1,500 scores", fontsize=12)
    ax.set_ylabel("LDS, with its standard error", fontsize=12)
    ax.tick_params(labelsize=11)
    ax.grid(color="#dddddd", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="lower right", fontsize=11)
    return figure


if __name__ == "__main__":
    if "--draw" not in sys.argv[1:]:
        measure()
    draw().savefig(Path(__file__).with_suffix(".png"), dpi=130)
