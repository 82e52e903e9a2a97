"""The commands and their options; what they do stands in a module each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

import ihvp
from ihvp.cli import backends as backends_command
from ihvp.cli import contract as contract_command
from ihvp.cli import demo as demo_command
from ihvp.cli import influence as influence_command
from ihvp.errors import IhvpError

# TensorFlow greets on stderr; someone who asked for a table or a demo need not read it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


class _Commands(TyperGroup):
    """Prints an ``IhvpError`` as its text: a traceback would only hide the advice in it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except IhvpError as error:
            Console(stderr=True).print("Error:", str(error), style="red", markup=False, highlight=False)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Commands,
    name="ihvp",
    help="Products with curvature matrices and their inverses, for a loss written in any framework.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(ihvp.__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Products with curvature matrices and their inverses, for a loss written in any framework."""


@app.command()
def backends(
    load: Annotated[
        bool,
        typer.Option(help="Import each framework to see that it works and on which device (some seconds)."),
    ] = True,
) -> None:
    """List the backends: which are installed, on what device they work, and how to install the others.

    A backend connects ihvp to one framework. "numdiff" needs none: it differentiates a gradient numerically.
    """
    backends_command.show(Console(), load=load)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def contract(
    context: typer.Context,
    backend: Annotated[str, typer.Argument(help="A name that `ihvp backends` lists.")],
) -> None:
    """Test a backend: run the suite that every backend has to pass. Needs pytest.

    Further options go to pytest, as in `ihvp contract torch -k linearize`.
    """
    raise typer.Exit(contract_command.run(backend, context.args))


@app.command()
def influence(
    objective: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:OBJECTIVE",
            help="An `ihvp.Objective` of your trained model, or a function that makes one: "
            "`training:objective` is the name `objective` in `training.py`.",
        ),
    ],
    test: Annotated[
        str,
        typer.Option(
            metavar="MODULE:DATA", help="The test points to ask about, in the form of the training data."
        ),
    ],
    top: Annotated[
        int, typer.Option(help="How many training examples to show for each test point.", min=1)
    ] = 10,
    which: Annotated[
        str,
        typer.Option(
            help="The largest scores of either sign (both), the `helpful` or the `harmful` examples."
        ),
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
        str, typer.Option(help="How the systems are solved: " + ", ".join(influence_command.SOLVERS) + ".")
    ] = "cg",
    rtol: Annotated[float, typer.Option(help="The relative residual to solve to.", min=0.0)] = 1e-5,
    test_loss: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:LOSS",
            help="What to ask about, if not the training's loss: no regulariser, a margin.",
        ),
    ] = None,
    train_loss: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:LOSS",
            help="What goes away with an example, if not all of the loss: no regulariser.",
        ),
    ] = None,
) -> None:
    """Ask which of your training examples a prediction is owed to.

    Write a file that defines the trained model's objective and some test points, such as `training.py`:

        objective = ihvp.Objective(loss, model, (x_train, y_train))

        test_data = x_test[:5], y_test[:5]

    Then `ihvp influence training:objective --test training:test_data` lists the training examples whose
    removal would change the loss at these points most, by influence functions (Koh and Liang, 2017).
    """
    made = influence_command.find(objective)
    influence_command.run(
        Console(),
        made() if callable(made) else made,
        influence_command.find(test),
        damping=damping,
        solver=influence_command.solver(solver, rtol),
        test_loss=None if test_loss is None else influence_command.find(test_loss),
        train_loss=None if train_loss is None else influence_command.find(train_loss),
        top=top,
        which=which,  # type: ignore[arg-type]  # what it may be is checked where it is used
        out=out,
    )


@app.command()
def demo(
    backend: Annotated[
        str, typer.Option(help="Who differentiates: a name that `ihvp backends` lists.")
    ] = "numdiff",
    out: Annotated[
        Path, typer.Option(help="The folder for the picture; made if need be.", file_okay=False)
    ] = Path("demo"),
) -> None:
    """Ask which training examples a wrong prediction is owed to, and prove the answer by retraining.

    Trains a softmax regression on scikit-learn's handwritten digits, takes the test digit that it gets most
    wrong, and finds the training digits that helped and harmed that prediction most. Then it retrains without
    the ten most harmful, and compares the predicted change of the loss with the actual one. Takes well under
    a minute; needs `pip install 'ihvp[demo]'`.
    """
    demo_command.run(Console(), backend, out)
