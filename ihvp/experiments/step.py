"""The error of central differences against their step r, in float32 and float64, of order 2 and 4."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp._registry import usable_plugin
from ihvp.backend import GradientFunction
from ihvp.experiments import figure, network
from ihvp.experiments.finding import Finding, write

CLAIM = (
    "The central difference with the fixed step r = 10⁻² gives (0.99999905, 0.99999905) for the product "
    "(1, 1) of y = w₂w₁x, and (2.22302, 9.33414) for (2.22222, 9.33333) of the loss (2w₁w₂ − 1)², in "
    "float32; automatic differentiation gives the product itself."
)
COLUMNS = ("problem", "dtype", "order", "step", "chosen", "relative_error")

# The notebooks' step, and what they printed for it.
SEED_STEP = 1e-2
SEED_CHAIN, SEED_TOY = (0.99999905, 0.99999905), (2.22302079, 9.33413506)
_STEPS = np.logspace(-12, 0, 97)
_DTYPES, _ORDERS = ("float32", "float64"), (2, 4)


@dataclass(frozen=True)
class Problem:
    """A gradient by hand, a point, data, a direction, and the product there in float64."""

    title: str
    gradient: Callable[[Any, Any], Any]
    weights: dict[str, NDArray[np.float64]]
    batch: Any
    direction: dict[str, NDArray[np.float64]]

    @property
    def exact(self) -> NDArray[np.float64]:
        """The product, by complex steps."""
        return network.exact_product(self.gradient, self.weights, self.batch, self.direction)

    def product(self, dtype: str, order: int, step: float | None) -> tuple[NDArray[np.floating], float]:
        """The product by differences, and the step that was taken: ``step``, or for None the chosen one."""
        weights = {name: array.astype(dtype) for name, array in self.weights.items()}
        batch = tuple(array.astype(dtype) for array in self.batch)
        v = _flat(self.direction).astype(dtype)
        moves: list[float] = []

        def gradient(w: Any, batch: Any) -> Any:
            moves.append(float(np.linalg.norm(_flat(w).astype(float) - _flat(weights))))
            return self.gradient(w, batch)

        numdiff: Any = usable_plugin("numdiff").factory(step=step, order=order)
        product = numdiff.hvp(GradientFunction(gradient), weights, batch, v)
        return product, step or min(moves) / float(np.linalg.norm(v))


def problems() -> dict[str, Problem]:
    """The two toys of the notebooks, and a network of 208 weights whose gradient is no polynomial."""
    one = np.ones(1)
    weights, batch = network.made(np.random.default_rng(0), inputs=4, hidden=12, examples=100, dtype=float)
    direction, _ = network.made(np.random.default_rng(1), inputs=4, hidden=12, examples=1, dtype=float)
    return {
        "chain": Problem(
            "y = w₂ w₁ x",
            lambda w, batch: {"w1": w["w2"] * batch[0], "w2": w["w1"] * batch[0]},
            {"w1": one, "w2": one},
            (one,),
            {"w1": one, "w2": one},
        ),
        "toy": Problem(
            "loss (2 w₁ w₂ − 1)²",
            _toy_gradient,
            {"w1": one, "w2": one / 3},
            (2 * one, one),
            {"w1": one, "w2": one},
        ),
        "network": Problem("a tanh network", network.gradient, weights, batch, direction),
    }


def _toy_gradient(w: Any, batch: Any) -> Any:
    x, y = batch
    error = 2 * x * (x * w["w1"] * w["w2"] - y)
    return {"w1": error * w["w2"], "w2": error * w["w1"]}


def run(out: Path, backend: str | None = None) -> Finding:
    """Sweep the step of numdiff, whatever ``backend`` says, on three problems, and mark the automatic one."""
    known = problems()
    kinds = [(name, order) for name in known for order in _ORDERS]
    rows = [row for name, order in kinds for row in _errors(name, known[name], order, (None, *_STEPS))]
    chain, _ = known["chain"].product("float32", 2, SEED_STEP)
    # The notebook's own rounding is 2e-6 here; in float64 the comparison does not add another's.
    toy, _ = known["toy"].product("float64", 2, SEED_STEP)
    held = np.abs(chain - SEED_CHAIN).max() < 1e-7 and np.abs(toy - SEED_TOY).max() < 2e-6
    chosen = "; ".join(
        f"{row[1]}, order {row[2]}: r = {row[3]:.1e}, error {row[5]:.1e}"
        for row in rows
        if row[0] == "network" and row[4]
    )
    fixed = {row[1]: row[5] for row in _errors("network", known["network"], 2, (SEED_STEP,))}
    return Finding(
        CLAIM,
        f"r = 10⁻² gives ({chain[0]:.8f}, {chain[1]:.8f}) and ({toy[0]:.5f}, {toy[1]:.5f}). On the network "
        f"its error is {fixed['float32']:.1e} in float32 and {fixed['float64']:.1e} in float64; that of the "
        f"automatic step is: {chosen}.",
        f"r = 10⁻² is off by {fixed['float32']:.0e} on a network, as printed on the toys",
        bool(held),
        write(out, "step", COLUMNS, rows, _draw(rows)),
    )


def _errors(
    name: str, problem: Problem, order: int, steps: tuple[float | None, ...]
) -> Iterator[tuple[str, str, int, float, bool, float]]:
    exact = problem.exact
    for dtype in _DTYPES:
        for step in steps:
            product, taken = problem.product(dtype, order, step)
            error = float(np.linalg.norm(product - exact) / np.linalg.norm(exact))
            yield name, dtype, order, float(taken), step is None, error


def _flat(tree: Any) -> NDArray[Any]:
    return np.concatenate([array.reshape(-1) for array in tree.values()])


def _draw(rows: list[tuple[str, str, int, float, bool, float]]) -> Any:
    known = problems()
    canvas, axes = figure.panels(len(known), sharey=True)
    # A difference that is right to the last digit has no logarithm; it is drawn on the floor.
    floor = 1e-17
    for ax, (name, problem) in zip(axes, known.items(), strict=True):
        for dtype, color in zip(_DTYPES, (figure.HARMS, figure.HELPS), strict=True):
            for order, line in zip(_ORDERS, ("-", ":"), strict=True):
                own = [row for row in rows if row[:3] == (name, dtype, order)]
                r, error = np.array([(row[3], max(row[5], floor)) for row in own if not row[4]]).T
                ax.loglog(r, error, line, color=color, linewidth=1.4, label=f"{dtype}, order {order}")
                (chosen,) = (row for row in own if row[4])
                ax.plot(
                    chosen[3],
                    max(chosen[5], floor),
                    "o" if order == 2 else "s",
                    color=color,
                    markersize=9,
                    markeredgecolor="black",
                    zorder=3,
                    clip_on=False,
                )
        ax.axvline(SEED_STEP, color=figure.NEUTRAL, linewidth=1, linestyle="--", label="the notebook's r")
        ax.plot([], [], "o", color="white", markeredgecolor="black", label="automatic r (order 4: square)")
        ax.set_title(problem.title, fontsize=12)
        ax.set(xlabel="step r (dimensionless)", ylim=(floor, 10))
    axes[0].set_ylabel("relative error of Hv")
    handles, labels = axes[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=12)
    return canvas
