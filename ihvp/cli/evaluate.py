"""``ihvp evaluate``: how good the scores of a user's model are, against training again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from ihvp import evaluate as evaluation
from ihvp.cli.config import Config
from ihvp.cli.influence import warnings_as_lines
from ihvp.cli.named import (
    ObjectiveName,
    SolverName,
    TestLoss,
    Tolerance,
    TrainLoss,
    find,
    find_data,
    find_objective,
    named,
    solver_of,
)
from ihvp.errors import InvalidOption
from ihvp.influence import Influence
from ihvp.kronecker import EKFAC, KFAC
from ihvp.operators import GaussNewton, Hessian
from ihvp.packages import required

Metric = Literal["lds", "loo", "brittleness", "detection"]
CurvatureName = Literal["auto", "hessian", "gauss-newton", "kfac", "ekfac"]
_CURVATURES: dict[str, Any] = {"hessian": Hessian, "gauss-newton": GaussNewton, "kfac": KFAC, "ekfac": EKFAC}

Row = tuple[str, str, float, float]
"""A setting, what was measured, its value and its standard error."""


def evaluate(
    objective: ObjectiveName,
    test: Annotated[str | None, named("DATA", "The test points, as for `influence`.")] = None,
    train_fn: Annotated[
        str | None,
        named(
            "FUNCTION",
            "`train_fn(kept, seed)`: the parameters after training on the examples with these numbers.",
        ),
    ] = None,
    metric: Annotated[
        Metric,
        typer.Option(
            help="lds: losses after training on subsets; loo: without single examples; brittleness: without "
            "the most helpful ones; detection: mislabelled examples by self-influence."
        ),
    ] = "lds",
    dampings: Annotated[str, typer.Option(help="λ; for lds several, with commas: 1e-3,1e-2,0.1.")] = "0",
    curvature: Annotated[
        CurvatureName, typer.Option(help="auto: the Hessian, or Gauss–Newton where that is indefinite.")
    ] = "auto",
    solver: Annotated[
        SolverName | None,
        typer.Option(help="As for `influence`; by default cg, or the closed form of kfac and ekfac."),
    ] = None,
    rtol: Tolerance = 1e-5,
    subsets: Annotated[
        int, typer.Option(help="How many subsets, or single examples for loo, to train with.", min=1)
    ] = 100,
    seeds: Annotated[int, typer.Option(help="With how many seeds each time.", min=1)] = 1,
    jobs: Annotated[int, typer.Option(help="How many processes train at a time; −1 for all processors.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder for what came of the trainings: the same command goes on where it stopped, and "
            "other dampings take no training.",
            file_okay=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="A file for a picture: .png, .pdf, .svg.", dir_okay=False)
    ] = None,
    test_loss: TestLoss = None,
    train_loss: TrainLoss = None,
    wrong: Annotated[
        str | None, named("FUNCTION", "For brittleness, the fraction of a batch that is predicted wrong.")
    ] = None,
    mislabelled: Annotated[
        str | None, named("ARRAY", "For detection, one boolean for each training example.")
    ] = None,
    config: Config = None,
) -> None:
    """Ask how good the scores of `ihvp influence` are on your model, by training it again.

    Beside the objective and the test points, `training.py` defines `train_fn(kept, seed)`, which trains a new
    model on some of the examples. `ihvp evaluate training:objective --test training:test_data --train-fn
    training:train_fn --dampings 1e-3,1e-2,1e-1 --out outcomes` prints the linear datamodelling score for each
    damping with its standard error (Park et al., "TRAK", 2023).
    """
    console, values = Console(), _numbers(dampings, several=metric == "lds")
    figure = None if plot is None else _figure(plot)
    whole, chosen = find_objective(objective), None if solver is None else solver_of(solver, rtol)
    question, removed = find(test_loss), find(train_loss)
    options: dict[str, Any] = {"seeds": seeds, "out": None if out is None else out / metric, "n_jobs": jobs}
    if metric == "detection":
        labels = find_data(_needed("--mislabelled", mislabelled, metric))
    else:
        data = find_data(_needed("--test", test, metric))
        train = find(_needed("--train-fn", train_fn, metric))
    found: Any
    rows: list[Row]
    with warnings_as_lines(True):
        matrix = None if curvature == "auto" else _CURVATURES[curvature](whole)
        influence = Influence(whole, values[0], chosen, train_loss=removed, curvature=matrix)
        if metric == "detection":
            found = evaluation.detection(influence.self_influence(), labels)
            rows = [(metric, "AUC", found.value, found.standard_error)]
        elif metric == "brittleness":
            options["wrong"] = find(wrong)
            found = evaluation.brittleness(influence, whole, train, data, test_loss=question, **options)
            rows = _rises(found)
        elif metric == "loo":
            numbers = np.random.default_rng(0).permutation(whole.total_examples)[:subsets]
            masks = evaluation.all_but(whole.total_examples, numbers.tolist())
            outcomes = evaluation.retrain(whole, train, data, masks, question, **options)
            found = evaluation.leave_one_out(influence, outcomes, data, question)
            rows = [_row(values[0], found)]
        else:
            outcomes = evaluation.retrain(whole, train, data, subsets, question, **options)
            options = {"solver": chosen, "train_loss": removed}
            found = evaluation.dampings(whole, outcomes, data, values, matrix, question, **options)
            rows = list(map(_row, found.dampings, found.agreements))
    _show(console, rows)
    if metric == "lds" and len(values) > 1:
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
        raise InvalidOption(option, None, f"module:name, which --metric {metric} needs")
    return place


def _figure(path: Path) -> Any:
    """An empty figure, or what is wrong with the name of its file: at once, not after the work."""
    figure = required("matplotlib.figure", "--plot", "pip install 'ihvp[plot]'").Figure(layout="constrained")
    kinds = figure.canvas.get_supported_filetypes()
    if path.suffix.lower().lstrip(".") not in kinds:
        expected = f"a file name that ends in one of .{', .'.join(sorted(kinds))}"
        raise InvalidOption("--plot", str(path), expected)
    return figure


def _row(damping: float, found: evaluation.Agreement) -> Row:
    return f"damping {damping:g}", found.what, found.value, found.standard_error


def _rises(found: evaluation.Brittleness) -> list[Row]:
    rows: list[Row] = []
    for k, rise, error, random, random_error, *flips in zip(*found.table.values(), strict=True):
        rows += [
            (f"{k} most helpful removed", "rise of the loss", rise, error),
            (f"{k} random removed", "rise of the loss", random, random_error),
        ]
        for what, flipped in zip(("most helpful", "random"), flips, strict=False):
            rows.append((f"{k} {what} removed", "became wrong", flipped, np.nan))
    return rows


def _show(console: Console, rows: list[Row]) -> None:
    table = Table("", "", "value", "standard error")
    for column in table.columns[2:]:
        column.justify = "right"
    for setting, what, value, error in rows:
        table.add_row(setting, what, f"{value:.4f}", "" if np.isnan(error) else f"{error:.4f}")
    console.print(table)
