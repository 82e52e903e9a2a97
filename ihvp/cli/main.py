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
