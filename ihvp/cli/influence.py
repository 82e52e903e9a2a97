"""``ihvp influence``: the training examples behind a user's predictions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from ihvp.arguments import check_function
from ihvp.cli.config import Config
from ihvp.cli.launched import shared
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
from ihvp.cli.report import Report
from ihvp.errors import InvalidOption
from ihvp.influence import Influence, NotAtOptimum
from ihvp.influence.top_k import TopK, Which
from ihvp.objective import Objective
from ihvp.report import check_place

# More test points than these would bury the first ones; files hold all.
_SHOWN = 5


def influence(
    objective: ObjectiveName,
    test: Annotated[
        str,
        named(
            "DATA",
            "The test points to ask about, in the form of the training data, or a function that makes them.",
        ),
    ],
    top: Annotated[
        int, typer.Option(help="How many training examples to show for each test point.", min=1)
    ] = 10,
    which: Annotated[
        Which,
        typer.Option(help="Rank by the size of the score, or list the helpful or the harmful examples only."),
    ] = "both",
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder for all scores (scores.npy; a zarr store if the name ends in .zarr) and top.csv. "
            "After an interruption the same command goes on where it stopped.",
            file_okay=False,
        ),
    ] = None,
    damping: Annotated[float, typer.Option(help="λ, added to the curvature's diagonal.", min=0.0)] = 0.0,
    solver: Annotated[
        SolverName,
        typer.Option(help="How the systems are solved: direct up to some thousand parameters, else cg."),
    ] = "cg",
    rtol: Tolerance = 1e-5,
    test_loss: TestLoss = None,
    train_loss: TrainLoss = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="PAGE.html",
            help="A page to look at, in one file: each test point with the examples that helped and harmed "
            "it most, as images, texts or rows of a table.",
            dir_okay=False,
        ),
    ] = None,
    inputs: Annotated[
        str | None,
        named(
            "FUNCTION",
            "What the page shows of a batch, if not its first array: `inputs(batch)`, one image, text or row "
            "for each example.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        named("FUNCTION", "The labels on the page, if not the first vector of integers: `labels(batch)`."),
    ] = None,
    config: Config = None,
) -> None:
    """Ask which of your training examples are behind a prediction.

    Write a file that defines the trained model's objective and some test points, such as `training.py`:

        objective = ihvp.Objective(loss, model, (x_train, y_train))

        test_data = x_test[:5], y_test[:5]

    Then `ihvp influence training:objective --test training:test_data` lists the training examples whose
    removal would change the loss at these points most, by influence functions (Koh and Liang, 2017).
    Put the training's regulariser into the loss, and where the curvature is indefinite add `--damping`.

    `torchrun --nproc-per-node 4 -m ihvp influence …` shares the work among processes, for a model of torch.
    """
    whole, test_data = find_objective(objective), find_data(test)
    page = _report(report, whole, test_data, inputs, labels)
    with shared(whole) as part:
        first = part.processes.rank == 0
        console = Console(quiet=not first)
        if top > part.total_examples:
            expected = f"an integer from 1 to {part.total_examples:,}, the number of training examples"
            raise InvalidOption("--top", top, expected)
        if page is not None:
            page.check()
        method = Influence(part, damping, solver_of(solver, rtol), train_loss=find(train_loss))
        question = find(test_loss)
        with warnings_as_lines(first):
            if out is None and page is None:
                found = method.top_k(test_data, top, test_loss=question, which=which)
            else:
                scores = method.scores(test_data, test_loss=question, out=out)
                found = scores.top_k(top, which)
        if out is not None and first:
            write_top(found, out / "top.csv")
        show_top(console, found)
        if out is not None:
            console.print(f"All scores are in {out}, these in {out / 'top.csv'}.", highlight=False)
        if page is not None and first:
            both = which == "both"
            page.write([scores.top_k(top, "helpful"), scores.top_k(top, "harmful")] if both else [found])
            console.print(f"The page is {page.path}.", highlight=False)


def _report(
    path: Path | None, objective: Objective, test_data: Any, inputs: str | None, labels: str | None
) -> Report | None:
    """The page of an objective that has all of the data, with the functions that are named."""
    places = {"--inputs": inputs, "--labels": labels}
    if path is None:
        for option, place in places.items():
            if place is not None:
                raise InvalidOption(option, place, "--report beside it, the page that it is for")
        return None
    check_place("--report", path)
    if objective.processes.count > 1:
        expected = "data that each process has all of; this module has given each its own part"
        raise InvalidOption("--report", str(path), expected)
    functions = {option: find(place) for option, place in places.items()}
    for option, function in functions.items():
        check_function(option, function, "a function of a batch")
    return Report(path, objective.batches, test_data, *functions.values())


@contextmanager
def warnings_as_lines(shown: bool) -> Iterator[None]:
    """A warning of this library is its text: the line of code that it points to would not be the user's."""
    with warnings.catch_warnings():
        plain = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **where: Any) -> None:
            if issubclass(category, NotAtOptimum):
                Console(stderr=True, quiet=not shown).print(
                    "Warning:", str(message), style="yellow", markup=False
                )
            else:
                plain(message, category, *place, **where)

        warnings.showwarning = show
        yield


def show_top(console: Console, found: TopK) -> None:
    """The examples of the first test points, a table for each."""
    tests = len(found.indices)
    for j in range(min(tests, _SHOWN)):
        table = Table(title=f"Test point {j}", title_justify="left")
        for column in ("rank", "training example", "score", ""):
            table.add_column(column, justify="right")
        for rank, (index, score) in enumerate(zip(found.indices[j], found.scores[j], strict=True), 1):
            table.add_row(str(rank), str(index), f"{score:+.3e}", "helps" if score > 0 else "harms")
        console.print(table)
    if tests > _SHOWN:
        console.print(f"… and {tests - _SHOWN:,} more test points.", highlight=False)
    console.print(
        "A score is the predicted rise of the test point's loss when the example is removed. "
        f"Largest recomputed residual of a solve: {found.residual:.1e}.",
        highlight=False,
    )


def write_top(found: TopK, path: Path) -> None:
    """All of them as a file, a line for each."""
    columns = found.table
    rows, header = np.column_stack(list(columns.values())), ",".join(columns)
    np.savetxt(path, rows, fmt=["%d", "%d", "%d", "%.9g"], delimiter=",", header=header, comments="")
