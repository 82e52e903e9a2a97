"""``ihvp index``: projected gradients of the training examples, built once and asked often."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ihvp.cli.config import Config
from ihvp.cli.influence import show_top, write_top
from ihvp.cli.launched import shared
from ihvp.cli.named import ObjectiveName, TestLoss, TrainLoss, find, find_data, find_objective, named
from ihvp.errors import gigabytes
from ihvp.index import GradientIndex, build_index, forecast
from ihvp.index.records import IndexDtype
from ihvp.influence.top_k import Which
from ihvp.projection import Projection, RandomKind

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")


@app.command()
def build(
    objective: ObjectiveName,
    out: Annotated[Path, typer.Option(help="The folder of the index.", file_okay=False)],
    dim: Annotated[int, typer.Option(help="How many numbers are kept of a gradient.", min=1)] = 1024,
    kind: Annotated[
        RandomKind,
        typer.Option(help="The projection; factored is by far the quickest where layers are seen."),
    ] = "sparse",
    seed: Annotated[int, typer.Option(help="Of the projection.", min=0)] = 0,
    dtype: Annotated[IndexDtype, typer.Option(help="Of the numbers in the file.")] = "float16",
    train_loss: TrainLoss = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell bytes and minutes, and stop.")] = False,
    config: Config = None,
) -> None:
    """Write the projected gradients of all training examples to a folder.

    After an interruption the same command goes on where it stopped. `torchrun … -m ihvp index build …`
    shares the work among processes.
    """
    projection, loss = Projection(dim, kind, seed), find(train_loss)
    with shared(find_objective(objective)) as part:
        console = Console(quiet=part.processes.rank > 0)
        foretold = forecast(part, projection, dtype, train_loss=loss)
        console.print(f"{foretold}.", highlight=False)
        if not dry_run:
            index = build_index(part, out, projection, dtype, train_loss=loss)
            console.print(
                f"{len(index):,} examples are in {out}, {gigabytes(index.nbytes)}.", highlight=False
            )


@app.command()
def query(
    folder: Annotated[Path, typer.Argument(help="The folder of the index.", file_okay=False)],
    objective: ObjectiveName,
    test: Annotated[str, named("DATA", "The test points to ask about.")],
    top: Annotated[int, typer.Option(help="How many training examples to show for each.", min=1)] = 10,
    which: Annotated[Which, typer.Option(help="As for `ihvp influence`.")] = "both",
    gram_damping: Annotated[
        float | None,
        typer.Option(
            help="λ, added to the index's own curvature, which is inverted; without it, no curvature.",
            min=0.0,
        ),
    ] = None,
    test_loss: TestLoss = None,
    query_rank: Annotated[
        int | None, typer.Option(help="Read the index with so many combinations of the questions.", min=1)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A file (.csv) for all rankings.", dir_okay=False)] = None,
    config: Config = None,
) -> None:
    """List the training examples of an index that are behind predictions."""
    curvature: Any = None if gram_damping is None else "gram"
    with shared(find_objective(objective)) as part:
        index = GradientIndex(folder, part, curvature=curvature, damping=gram_damping or 0.0)
        options: dict[str, Any] = {"which": which, "query_rank": query_rank}
        found = index.top_k(find_data(test), top, test_loss=find(test_loss), **options)
        first = part.processes.rank == 0
        show_top(Console(quiet=not first), found)
        if out is not None and first:
            write_top(found, out)


@app.command()
def info(folder: Annotated[Path, typer.Argument(help="The folder of the index.", file_okay=False)]) -> None:
    """Tell what an index holds."""
    index = GradientIndex(folder)
    table = Table(show_header=False)
    for name, value in (
        ("examples", f"{len(index):,}"),
        ("numbers of each", f"{index.dim:,} in {index.dtype}"),
        ("projection", f"{index.projection.kind}, seed {index.projection.seed}"),
        ("layers", ", ".join(index.parts) or "not kept apart"),
        ("size", gigabytes(index.nbytes)),
    ):
        table.add_row(name, value)
    Console().print(table)
