"""The time of one Hessian product of ``xᵀx`` against the number of parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ihvp.backend import BackendPlugin, GradientFunction
from ihvp.experiments import choice, figure
from ihvp.experiments.cost import medians
from ihvp.experiments.finding import Finding, write
from ihvp.progress import track

CLAIM = "The time of a Hessian-vector product grows linearly in the number of parameters p, not as p²."

# Below, the time is the cost of a call, whatever it computes.
FITTED_FROM = 100_000
# Half-way between the p that was claimed and the p² that was feared.
_LINEAR = 1.5
# Seconds for each backend, without the warm-up.
_QUICK, _FULL = 2.0, 60.0


def sizes(*, full: bool = False) -> list[int]:
    """The numbers of parameters: 25 in equal ratios, or the notebook's own 199 in equal steps."""
    grid = 1 + np.arange(199) * 1e7 / 199 if full else np.geomspace(1, 1e7, 25)
    return [int(p) for p in grid.round()]


def exponent(p: ArrayLike, seconds: ArrayLike) -> float:
    """The slope of log time over log p, by least squares over ``p ≥ FITTED_FROM``."""
    p, seconds = np.asarray(p, dtype=float), np.asarray(seconds, dtype=float)
    large = p >= FITTED_FROM
    return float(np.polyfit(np.log(p[large]), np.log(seconds[large]), 1)[0])


def run(out: Path, backend: str | None = None, *, full: bool = False) -> Finding:
    """Time gradients and products, of every installed backend or of ``backend`` alone."""
    rows: list[tuple[str, int, float, float]] = []
    at = sizes(full=full)
    for plugin in choice.plugins(backend):
        with track(f"complexity, {plugin.name}", len(at), full or None) as advance:
            for p in at:
                product, gradient = _times(plugin, p, (_FULL if full else _QUICK) / len(at))
                rows.append((plugin.name, p, product, gradient))
                advance(1)
    names = list(dict.fromkeys(row[0] for row in rows))
    curves = {name: np.array([row[1:] for row in rows if row[0] == name]) for name in names}
    exponents = {name: exponent(curve[:, 0], curve[:, 1]) for name, curve in curves.items()}
    units = {name: _in_gradients(curve) for name, curve in curves.items()}

    columns = "backend", "p", "product_seconds", "gradient_seconds"
    listed = "; ".join(f"{name}: p^{exponents[name]:.2f}, {units[name]:.1f} gradients" for name in names)
    return Finding(
        CLAIM,
        f"For p ≥ {FITTED_FROM:,}, the time of a product (p¹ is linear) and its median cost: {listed}.",
        ", ".join(f"p^{exponents[name]:.2f} {name}" for name in names),
        all(value < _LINEAR for value in exponents.values()),
        write(out, "complexity", columns, rows, _draw(curves, exponents, units)),
    )


def _times(plugin: BackendPlugin, p: int, budget: float) -> tuple[float, float]:
    dialect = choice.dialect(plugin)
    params = dialect.parameters({"x": np.ones(p, dtype=np.float32)})
    backend = plugin.factory(params)

    def value(w: Any, _: Any) -> Any:
        return dialect.xp.sum(w["x"] * w["x"])

    by_gradient = plugin.differentiates == "gradient"
    loss: Any = GradientFunction(lambda w, _: {"x": 2 * w["x"]}) if by_gradient else value
    v = backend.flatten(params)
    times = medians(
        {
            "product": lambda: backend.hvp(loss, params, None, v),
            "gradient": lambda: backend.grad(loss, params, None),
        },
        budget,
        least=7,
    )
    return times["product"], times["gradient"]


def _in_gradients(curve: np.ndarray) -> float:
    large = curve[:, 0] >= FITTED_FROM
    return float(np.median(curve[large, 1] / curve[large, 2]))


def _draw(curves: dict[str, np.ndarray], exponents: dict[str, float], units: dict[str, float]) -> Any:
    canvas, (left, right) = figure.panels(2)
    for (name, curve), style in zip(curves.items(), figure.styles(), strict=False):
        p, product, gradient = curve.T
        left.loglog(p, 1e3 * product, label=f"{name}, p$^{{{exponents[name]:.2f}}}$", **style)
        right.semilogx(p, product / gradient, label=f"{name}, {units[name]:.1f}", **style)
    start = max(curve[-1, 1] for curve in curves.values()) * 1e3
    line = np.array([1e5, 1e7])
    left.loglog(line, 2.5 * start * line / line[-1], color=figure.NEUTRAL, linewidth=1, linestyle=":")
    left.annotate("∝ p", (1e6, 0.25 * start), xytext=(-6, 4), textcoords="offset points", ha="right")
    left.set(xlabel="parameters p", ylabel="time of one product Hv [ms]")
    left.legend(loc="upper left", frameon=False)
    right.set(xlabel="parameters p", ylabel="time of Hv [gradients]")
    # Room above the curves for the legend.
    right.set_ylim(0, 1.5 * max((curve[:, 1] / curve[:, 2]).max() for curve in curves.values()))
    right.legend(loc="upper center", ncols=2, frameon=False, title="median for p ≥ 10$^5$")
    return canvas
