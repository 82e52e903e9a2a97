"""``ihvp evaluate``: how good the scores of a user's model are, against training again."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ihvp import evaluate
from ihvp.cli.influence import find, find_data, find_objective, warnings_as_lines
from ihvp.errors import InvalidOption
from ihvp.influence import Influence
from ihvp.kronecker import EKFAC, KFAC
from ihvp.objective import Objective
from ihvp.operators import GaussNewton, Hessian, LinearOperator
from ihvp.packages import required
from ihvp.solvers import Solver


class Metric(StrEnum):
    """How scores are judged."""

    lds = "lds"
    loo = "loo"
    brittleness = "brittleness"
    detection = "detection"


class CurvatureName(StrEnum):
    """The matrix that is inverted."""

    auto = "auto"
    hessian = "hessian"
    gauss_newton = "gauss-newton"
    kfac = "kfac"
    ekfac = "ekfac"

    def made(self, objective: Objective) -> LinearOperator | None:
        """The matrix of an objective; None where the library chooses."""
        kinds: dict[str, Any] = {
            "hessian": Hessian,
            "gauss-newton": GaussNewton,
            "kfac": KFAC,
            "ekfac": EKFAC,
        }
        return None if self is CurvatureName.auto else kinds[self.value](objective)


@dataclass(frozen=True)
class Places:
    """The names of a user's objects, as ``module:name``; None of what was not given."""

    objective: str
    test: str | None
    train_fn: str | None
    test_loss: str | None
    train_loss: str | None
    wrong: str | None
    mislabelled: str | None


def run(
    console: Console,
    places: Places,
    metric: Metric,
    *,
    dampings: str,
    curvature: CurvatureName,
    solver: Solver | None,
    subsets: int,
    seeds: int,
    jobs: int,
    out: Path | None,
    plot: Path | None,
) -> None:
    """Show how good the scores of influence functions are, and draw it to the file ``plot``.

    Outcomes of trainings are kept in a folder of the metric's name in ``out``.
    """
    values = _numbers(dampings, several=metric is Metric.lds)
    figure = None if plot is None else _figure(plot)
    objective = find_objective(places.objective)
    test_loss, train_loss, wrong = (
        None if place is None else find(place)
        for place in (places.test_loss, places.train_loss, places.wrong)
    )
    folder = None if out is None else out / metric.value
    with warnings_as_lines(True):
        matrix = curvature.made(objective)
        influence = Influence(objective, values[0], solver, train_loss=train_loss, curvature=matrix)
        found: Any
        if metric is Metric.detection:
            mislabelled = find_data(_needed("--mislabelled", places.mislabelled, metric))
            found = evaluate.detection(influence.self_influence(), mislabelled)
            rows = [(metric.value, "AUC", found.value, found.standard_error)]
        else:
            test = find_data(_needed("--test", places.test, metric))
            train = find(_needed("--train-fn", places.train_fn, metric))
            retraining: dict[str, Any] = {"seeds": seeds, "out": folder, "n_jobs": jobs}
            if metric is Metric.brittleness:
                found = evaluate.brittleness(
                    influence, objective, train, test, None, test_loss, wrong=wrong, **retraining
                )
                rows = _rises(found)
            else:
                masks: Any = subsets
                if metric is Metric.loo:
                    numbers = np.random.default_rng(0).permutation(objective.total_examples)
                    masks = evaluate.all_but(objective.total_examples, numbers[:subsets].tolist())
                outcomes = evaluate.retrain(objective, train, test, masks, test_loss, **retraining)
                if metric is Metric.loo:
                    found = evaluate.leave_one_out(influence, outcomes, test, test_loss)
                    each = [(values[0], found)]
                else:
                    found = evaluate.dampings(
                        objective,
                        outcomes,
                        test,
                        values,
                        matrix,
                        test_loss,
                        solver=solver,
                        train_loss=train_loss,
                    )
                    each = list(zip(found.dampings, found.agreements, strict=True))
                rows = [(f"damping {value:g}", of.what, of.value, of.standard_error) for value, of in each]
    _show(console, rows)
    if metric is Metric.lds and len(values) > 1:
        console.print(
            f"Take a damping of {found.damping:g}, the largest within one standard error of the difference "
            f"from the best, {found.best:g}.",
            highlight=False,
        )
    if figure is not None:
        found.plot(figure.subplots())
        figure.savefig(plot)
        console.print(f"The picture is in {plot}.", highlight=False)


def _numbers(text: str, *, several: bool) -> list[float]:
    expected = "numbers ≥ 0 with commas between them" if several else "one number ≥ 0; only lds takes several"
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidOption("--dampings", text, expected) from error
    if len(values) > 1 and not several:
        raise InvalidOption("--dampings", text, expected)
    return values


def _needed(option: str, place: str | None, metric: Metric) -> str:
    if place is None:
        raise InvalidOption(option, None, f"module:name, which --metric {metric.value} needs")
    return place


def _figure(path: Path) -> Any:
    """An empty figure, or what is wrong with the name of its file: at once, not after the work."""
    figure = required("matplotlib.figure", "--plot", "pip install 'ihvp[plot]'").Figure(layout="constrained")
    kinds = figure.canvas.get_supported_filetypes()
    if path.suffix.lower().lstrip(".") not in kinds:
        raise InvalidOption(
            "--plot", str(path), f"a file name that ends in one of .{', .'.join(sorted(kinds))}"
        )
    return figure


def _rises(found: evaluate.Brittleness) -> list[tuple[str, str, float, float]]:
    rows: list[tuple[str, str, float, float]] = []
    for k, rise, error, random, random_error, *flips in zip(*found.table.values(), strict=True):
        rows += [
            (f"{k} most helpful removed", "rise of the loss", rise, error),
            (f"{k} random removed", "rise of the loss", random, random_error),
        ]
        for what, flipped in zip(("most helpful", "random"), flips, strict=False):
            rows.append((f"{k} {what} removed", "became wrong", flipped, np.nan))
    return rows


def _show(console: Console, rows: list[tuple[str, str, float, float]]) -> None:
    table = Table("", "", "value", "standard error")
    for column in table.columns[2:]:
        column.justify = "right"
    for setting, what, value, error in rows:
        table.add_row(setting, what, f"{value:.4f}", "" if np.isnan(error) else f"{error:.4f}")
    console.print(table)
