"""The command line: its commands, each in a module of its own."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from ihvp.cli import index
from ihvp.cli.backends import backends
from ihvp.cli.contract import contract
from ihvp.cli.demo import demo
from ihvp.cli.evaluate import evaluate
from ihvp.cli.experiment import experiment
from ihvp.cli.influence import influence
from ihvp.errors import IhvpError
from ihvp.version import __version__

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
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Products with curvature matrices and their inverses, for a loss written in any framework."""


app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(contract)
for command in (backends, influence, evaluate, demo, experiment):
    app.command()(command)
app.add_typer(
    index.app, name="index", help="Keep projected gradients of the training examples, and ask them."
)
