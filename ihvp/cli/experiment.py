"""``ihvp experiment``: a claim, what this machine finds, and where the table and the figure are."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from ihvp.errors import IhvpError
from ihvp.experiments import EXPERIMENTS, Finding, run


def show(console: Console) -> None:
    """List the experiments."""
    table = Table("experiment", "what it shows", box=None, header_style="bold", pad_edge=False)
    for name, experiment in EXPERIMENTS.items():
        table.add_row(name, experiment.about)
    console.print(table)
    console.print("\nRun one with `ihvp experiment NAME`, or all with `ihvp experiment all`.")


def run_and_print(console: Console, name: str, backend: str | None, out: Path, *, full: bool) -> bool:
    """Run one experiment, or ``all``, and print each finding when it is there.

    Of all, those with a long form run it if ``full``, and one that cannot run does not stop the others; then
    the answer is False.
    """
    if name != "all":
        _print(console, name, run(name, out, backend, full=full))
        return True
    complete = True
    for each, experiment in EXPERIMENTS.items():
        try:
            _print(console, each, run(each, out, backend, full=full and experiment.has_full))
        except IhvpError as error:
            complete = False
            console.print(f"{each}: not run.", str(error), style="red", markup=False, soft_wrap=True)
    return complete


def _print(console: Console, name: str, finding: Finding) -> None:
    verdict = "[bold green]held[/]" if finding.held else "[bold red]did not hold[/]"
    console.print(f"[bold]{name}[/]: the claim {verdict}")
    for label, text in (("claim", finding.claim), ("found", finding.found)):
        console.print(f"  {label}:", text, markup=False, highlight=False, soft_wrap=True)
    for path in finding.files:
        console.print(" ", str(path), markup=False, highlight=False, soft_wrap=True)
