"""Objects of a user's modules, which options name as ``module:name``."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import Annotated, Any, Literal

import typer

from ihvp.errors import ImportedObject, describe
from ihvp.objective import Objective
from ihvp.solvers import CG, MINRES, Auto, Direct, LiSSA, Solver


def named(kind: str, what: str) -> Any:
    """An option whose value names an object of this kind."""
    return typer.Option(metavar=f"MODULE:{kind}", help=what)


ObjectiveName = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:OBJECTIVE",
        help="An `ihvp.Objective` of your trained model, or a function that makes one: "
        "`training:objective` is the name `objective` in `training.py`.",
    ),
]
TestLoss = Annotated[
    str | None, named("LOSS", "What to ask about, if not the training's loss: no regulariser, a margin.")
]
TrainLoss = Annotated[
    str | None, named("LOSS", "What goes away with an example, if not all of the loss: no regulariser.")
]
Tolerance = Annotated[
    float, typer.Option(help="The relative residual to solve to; 0.05 suits lissa.", min=0.0)
]

SolverName = Literal["cg", "minres", "direct", "lissa", "auto"]
_SOLVERS: dict[str, Any] = {"cg": CG, "minres": MINRES, "direct": Direct, "lissa": LiSSA, "auto": Auto}


def solver_of(name: SolverName, rtol: float) -> Solver:
    """The solver of a name with a tolerance."""
    solver: Solver = _SOLVERS[name](rtol=rtol)
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


def _made(found: Any) -> Any:
    return found() if inspect.isfunction(found) else found


def find(place: str | None) -> Any:
    """What ``module:name`` names, and None for None; modules of the current folder are found too.

    Raises ImportedObject where there is no such module or name.
    """
    if place is None:
        return None
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
