"""``ihvp experiment``: a claim, what this machine finds, and where the table and the figure are."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ihvp.cli.config import Config
from ihvp.errors import IhvpError
from ihvp.experiments import EXPERIMENTS, Finding, run


def experiment(
    name: Annotated[
        str | None,
        typer.Argument(help="The experiment, or `all`; without it, they are listed.", show_default=False),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="Who differentiates, of those that `ihvp backends` lists; complexity and modes compare all."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The folder for the table and the figure; made if need be.", file_okay=False)
    ] = Path("experiments"),
    full: Annotated[
        bool, typer.Option("--full", help="The long form, of an experiment that has one (complexity).")
    ] = False,
    config: Config = None,
) -> None:
    """Run an experiment of the notebooks behind this library, and say whether its claim held.

    Writes NAME.csv and NAME.png. Needs `pip install 'ihvp[demo]'`.
    """
    console = Console()
    if name is None:
        _list(console)
    elif name != "all":
        _print(console, name, run(name, out, backend, full=full))
    elif not _run_all(console, backend, out, full=full):
        raise typer.Exit(1)


def _list(console: Console) -> None:
    table = Table("experiment", "what it shows", box=None, header_style="bold", pad_edge=False)
    for name, listed in EXPERIMENTS.items():
        table.add_row(name, listed.about)
    console.print(table)
    console.print("\nRun one with `ihvp experiment NAME`, or all with `ihvp experiment all`.")


def _run_all(console: Console, backend: str | None, out: Path, *, full: bool) -> bool:
    """Run all experiments, print each finding when it is there, and a table; whether none has failed."""
    table = Table("experiment", "finding", "claim", "seconds", box=None, header_style="bold", pad_edge=False)
    table.columns[-1].justify = "right"
    complete = True
    for name, listed in EXPERIMENTS.items():
        start = time.perf_counter()
        try:
            finding = run(name, out, listed.only or backend, full=full and listed.has_full)
        except Exception as error:  # frameworks fail in any way, and the others are still wanted
            complete = False
            text = str(error) if isinstance(error, IhvpError) else f"{type(error).__name__}: {error}"
            console.print(f"{name}: failed.", text, style="red", markup=False, soft_wrap=True)
            brief, verdict = text.partition(".")[0], "[red]failed[/]"
        else:
            _print(console, name, finding)
            brief, verdict = finding.brief, _verdict(finding)
        table.add_row(name, escape(brief), verdict, f"{time.perf_counter() - start:.1f}")
    console.print()
    console.print(table)
    return complete


def _print(console: Console, name: str, finding: Finding) -> None:
    console.print(f"[bold]{name}[/]: the claim {_verdict(finding)}")
    for label, text in (("claim", finding.claim), ("found", finding.found)):
        console.print(f"  {label}:", text, markup=False, highlight=False, soft_wrap=True)
    for path in finding.files:
        console.print(" ", str(path), markup=False, highlight=False, soft_wrap=True)


def _verdict(finding: Finding) -> str:
    return "[bold green]held[/]" if finding.held else "[bold red]did not hold[/]"
