"""Draws laplace.png of the page "Laplace approximations", by the page's own example."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import torch
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
code = re.search(r"```python\n(.*?)```", (HERE.parent / "laplace.md").read_text(), re.DOTALL)
names: dict = {}
exec(code[1], names)
grid = torch.linspace(-4, 4, 300)[:, None]
found = names["posterior"].predictive((grid, grid))
mean, sd = found.mean[:, 0], found.standard_deviation[:, 0]
figure, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
ax.fill_between(grid[:, 0], mean - 2 * sd, mean + 2 * sd, color="#0072B2", alpha=0.2, linewidth=0)
ax.plot(grid[:, 0], mean, color="#0072B2")
ax.plot(names["x"], names["y"], ".", color="black", markersize=4)
ax.set(xlabel="x", ylabel="y", ylim=(-3, 3))
ax.spines[["top", "right"]].set_visible(False)
figure.savefig(HERE / "laplace.png", dpi=130)
