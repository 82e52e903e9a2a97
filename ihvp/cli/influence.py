"""``ihvp influence``: the training examples behind a user's predictions."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ihvp.arguments import check_function
from ihvp.cli.report import Report
from ihvp.errors import ImportedObject, InvalidOption, describe
from ihvp.influence import Influence, NotAtOptimum
from ihvp.influence.top_k import TopK
from ihvp.objective import Objective
from ihvp.report import check_place
from ihvp.solvers import CG, MINRES, Auto, Direct, LiSSA, Solver

# More test points than these would bury the first ones; files hold all.
_SHOWN = 5


class Ranking(StrEnum):
    """Which examples are listed."""

    both = "both"
    helpful = "helpful"
    harmful = "harmful"


class SolverName(StrEnum):
    """How the systems are solved."""

    cg = "cg"
    minres = "minres"
    direct = "direct"
    lissa = "lissa"
    auto = "auto"

    def made(self, rtol: float) -> Solver:
        """The solver with a tolerance."""
        kinds: dict[str, Any] = {"cg": CG, "minres": MINRES, "direct": Direct, "lissa": LiSSA, "auto": Auto}
        solver: Solver = kinds[self.value](rtol=rtol)
        return solver


def find_objective(place: str) -> Objective:
    """The objective that ``module:name`` names, or that the function of this name makes."""
    found = find(place)
    made = _made(found)
    if not isinstance(made, Objective):
        verb = "it is" if made is found else "it returned"
        raise ImportedObject(
            place, f"{verb} {describe(made)}, not an ihvp.Objective or a function that makes one"
        )
    return made


def find_data(place: str) -> Any:
    """The data that ``module:name`` names, or that the function of this name makes."""
    return _made(find(place))


def make_report(
    path: Path | None, objective: Objective, test_data: Any, inputs: str | None, labels: str | None
) -> Report | None:
    """The page of an objective that has all of the data, with the functions that are named."""
    found = {"--inputs": inputs, "--labels": labels}
    if path is None:
        for option, place in found.items():
            if place is not None:
                raise InvalidOption(option, place, "--report beside it, the page that it is for")
        return None
    check_place("--report", path)
    if objective.processes.count > 1:
        raise InvalidOption(
            "--report",
            str(path),
            "data that each process has all of; this module has given each its own part",
        )
    functions = {option: None if place is None else find(place) for option, place in found.items()}
    for option, function in functions.items():
        check_function(option, function, "a function of a batch")
    return Report(path, objective.batches, test_data, *functions.values())


def _made(found: Any) -> Any:
    return found() if inspect.isfunction(found) else found


def find(place: str) -> Any:
    """What ``module:name`` names; modules of the current folder are found too.

    Raises ImportedObject where there is no such module or name.
    """
    module, separator, name = place.partition(":")
    if not (module and separator and name):
        raise ImportedObject(place, "it has no colon between a module and a name")
    if module.endswith(".py") or "/" in module:
        raise ImportedObject(place, "a module is named without folder and without .py")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0] and error.name != module:
            raise
        raise ImportedObject(place, f"there is no module {module!r} here or installed") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ImportedObject(place, f"{module!r} has no {name!r}")
        found = getattr(found, part)
    return found


def run(
    console: Console,
    objective: Objective,
    test_data: Any,
    *,
    damping: float,
    solver: Solver,
    test_loss: Any,
    train_loss: Any,
    top: int,
    which: Ranking,
    out: Path | None,
    report: Report | None = None,
) -> None:
    """Show the most influential examples of the first test points, and leave files in the folder ``out``.

    There are ``top`` examples for each point; in the folder, ``scores.npy`` or ``scores.zarr``, and
    ``top.csv``; on the page of the ``report``, ``top`` that helped and ``top`` that harmed. Of several
    processes the first alone tells.
    """
    first = objective.processes.rank == 0
    console.quiet = not first
    if top > objective.total_examples:
        raise InvalidOption(
            "--top",
            top,
            f"an integer from 1 to {objective.total_examples:,}, the number of training examples",
        )
    if report is not None:
        report.check()
    influence = Influence(objective, damping, solver, train_loss=train_loss)
    with warnings_as_lines(first):
        if out is None and report is None:
            found = influence.top_k(test_data, top, test_loss=test_loss, which=which.value)
        else:
            scores = influence.scores(test_data, test_loss=test_loss, out=out)
            found = scores.top_k(top, which.value)
    if out is not None and first:
        write_top(found, out / "top.csv")
    show_top(console, found)
    if out is not None:
        console.print(f"All scores are in {out}, these in {out / 'top.csv'}.", highlight=False)
    if report is not None and first:
        both = which is Ranking.both
        report.write([scores.top_k(top, each) for each in ("helpful", "harmful")] if both else [found])
        console.print(f"The page is {report.path}.", highlight=False)


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
    tests, k = found.indices.shape
    columns = (
        np.repeat(np.arange(tests), k),
        np.tile(np.arange(1, k + 1), tests),
        found.indices.ravel(),
        found.scores.ravel(),
    )
    np.savetxt(
        path,
        np.column_stack(columns),
        fmt=["%d", "%d", "%d", "%.9g"],
        delimiter=",",
        header="test,rank,train,score",
        comments="",
    )
