"""Four ways to one Hessian product: their time, memory and error beside each other.

Forward over reverse, reverse over reverse, a linearised gradient applied to one vector more, and central
differences, on a tanh network of 82,176 weights and 20,000 examples.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ihvp._registry import usable_plugin
from ihvp.backend import BackendPlugin, CurvatureBackend, GradientFunction, SupportsLinearize, Vector
from ihvp.experiments import choice, figure, network
from ihvp.experiments.bare import BARE, Bare
from ihvp.experiments.cost import finish, medians, rise
from ihvp.experiments.finding import Finding, write

CLAIM = (
    "Automatic differentiation evaluates the product itself, in either mode for a few gradients, where "
    "finite differences approximate it."
)
COLUMNS = ("backend", "way", "seconds", "gradients", "peak_mib", "relative_error")
LINEARISED, DIFFERENCES = "linearised once", "finite differences"
_ORDER = ("the backend's own", "forward over reverse", "reverse over reverse", LINEARISED, DIFFERENCES)

_INPUTS, _HIDDEN = 64, 256
_EXAMPLES, _FEW = 20_000, 500
_BUDGET = 8.0
# An error of a product in float32 that is rounding and no more.
_ROUNDING = 1e-5

Row = tuple[str, str, float, float, float, float]
# A backend of someone else: what its product does inside is its own matter.
_UNKNOWN = Bare("the backend's own", "", lambda *_: lambda: None)


def run(out: Path, backend: str | None = None) -> Finding:
    """Compare the ways of every installed backend, or of ``backend`` alone."""
    plugins = choice.plugins(backend)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
        rows = [row for plugin in plugins for row in _measure(plugin, processes)]
    exact = [row for row in rows if row[1] != DIFFERENCES]
    approximate = [row for row in rows if row[1] == DIFFERENCES]
    worst, best = max((row[5] for row in exact), default=0.0), min(row[5] for row in approximate)
    costs = "; ".join(f"{name} {way} {cost:.1f}" for name, way, _, cost, _, _ in rows)
    return Finding(
        CLAIM,
        f"In float32 automatic differentiation is off by {worst:.0e} at most and finite differences by "
        f"{best:.0e} at least. One product in gradients: {costs}.",
        f"automatic off by {worst:.0e} at most, differences by {best:.0e} at least",
        worst < min(_ROUNDING, best),
        write(out, "modes", COLUMNS, rows, _draw(rows)),
    )


def _measure(plugin: BackendPlugin, processes: ProcessPoolExecutor) -> Iterator[Row]:
    weights, data, direction = _problem()
    few = _few(data)
    exact = network.exact_product(network.gradient, weights, _wide(few), _wide(direction))
    ways, small = Ways(plugin, weights, data, direction), Ways(plugin, weights, few, direction)
    peaks = {way: processes.submit(_peak, plugin.name, way).result() for way in ways.names}
    seconds = medians({way: ways.call(way) for way in ways.names} | {"gradient": ways.gradient}, _BUDGET)
    for way in ways.names:
        error = float(np.linalg.norm(_flat(small.call(way)()) - exact) / np.linalg.norm(exact))
        cost = seconds[way] / seconds["gradient"]
        yield plugin.name, way, seconds[way], cost, peaks[way] / 2**20, error


def _peak(name: str, way: str) -> int:
    """The memory of one way, asked in a process of its own: a framework may keep what another way freed."""
    plugin, (weights, data, direction) = usable_plugin(name), _problem()
    finish(Ways(plugin, weights, _few(data), direction).call(way)())
    ways = Ways(plugin, weights, data, direction)
    return rise(lambda: finish(ways.call(way)()))


def _problem() -> tuple[Any, Any, Any]:
    weights, data = network.made(np.random.default_rng(0), _INPUTS, _HIDDEN, _EXAMPLES)
    return weights, data, network.made(np.random.default_rng(1), _INPUTS, _HIDDEN, 1)[0]


def _few(data: tuple[Any, Any]) -> tuple[Any, Any]:
    return data[0][:_FEW], data[1][:_FEW]


class Ways:
    """The ways of one backend to ``∇² loss · v`` of the network at ``weights``.

    Weights, batch and direction are numpy arrays, as :func:`ihvp.experiments.network.made` makes them.
    """

    def __init__(self, plugin: BackendPlugin, weights: Any, batch: tuple[Any, Any], direction: Any) -> None:
        dialect = choice.dialect(plugin)
        self._params, self._direction = dialect.parameters(weights), dialect.parameters(direction)
        self._backend = plugin.factory(self._params)
        self._by_gradient = plugin.differentiates == "gradient"
        self._loss: Any = network.loss(dialect.xp)
        self._batch: Any = tuple(dialect.xp.asarray(array) for array in batch)
        if self._by_gradient:
            self._loss = GradientFunction(network.gradient)
        self._bare = BARE.get(plugin.name, _UNKNOWN)
        self._v: Vector = self._backend.flatten(self._direction)

    def gradient(self) -> Vector:
        """The unit of the costs."""
        return self._backend.grad(self._loss, self._params, self._batch)

    @property
    def names(self) -> list[str]:
        """The ways that there are."""
        if self._by_gradient:
            return [DIFFERENCES]
        found = {DIFFERENCES, self._bare.own, self._bare.other} - {""}
        if isinstance(self._backend, SupportsLinearize):
            found.add(LINEARISED)
        return sorted(found, key=_ORDER.index)

    def call(self, way: str) -> Callable[[], Any]:
        """What computes the product that way; a linearisation is made in here."""
        if way == LINEARISED:
            assert isinstance(self._backend, SupportsLinearize)
            product = self._backend.linearize(self._loss, self._params, self._batch)
            return lambda: product(self._v)
        if way == DIFFERENCES:
            inner = None if self._by_gradient else self._backend
            return partial(self._product, usable_plugin("numdiff").factory(inner=inner))
        if way == self._bare.own:
            return partial(self._product, self._backend)
        return self._bare.make(self._loss, self._params, self._batch, self._direction)

    def _product(self, backend: CurvatureBackend) -> Vector:
        return backend.hvp(self._loss, self._params, self._batch, self._v)


def _wide(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: array.astype(float) for name, array in tree.items()}
    return tuple(array.astype(float) for array in tree)


def _flat(product: Any) -> np.ndarray:
    parts = [product[name] for name in sorted(product)] if isinstance(product, dict) else [product]
    return np.concatenate([np.asarray(part, dtype=float).reshape(-1) for part in parts])


def _draw(rows: list[Row]) -> Any:
    names = list(dict.fromkeys(row[0] for row in rows))
    canvas, axes = figure.panels(3, sharey=True, height=1.6 + 0.28 * (len(rows) + len(names)))
    places, ticks, place = [], [], 0.0
    for name in names:
        for _, way, *_ in (row for row in rows if row[0] == name):
            places.append(place)
            ticks.append(f"{way}  ({name})")
            place += 1
        place += 0.6
    colors = [figure.HARMS if row[1] == DIFFERENCES else figure.HELPS for row in rows]
    labels = ("time of one product [gradients]", "peak memory beyond data [MiB]", "relative error of Hv")
    for ax, column, label, form in zip(axes, (3, 4, 5), labels, ("%.1f", "%.0f", "%.0e"), strict=True):
        bars = ax.barh(places, [row[column] for row in rows], color=colors, height=0.75)
        ax.bar_label(bars, fmt=form, padding=3, fontsize=11)
        ax.set_xlabel(label)
        ax.margins(x=0.18)
    axes[2].set_xscale("log")
    axes[0].set_yticks(places, ticks)
    axes[0].invert_yaxis()
    return canvas
