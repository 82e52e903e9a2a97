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
from ihvp.cli import evaluate as evaluate_command
from ihvp.cli import experiment as experiment_command
from ihvp.cli import index as index_command
from ihvp.cli import influence as influence_command
from ihvp.cli.config import Config
from ihvp.cli.launched import shared
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
    context: typer.Context, backend: Annotated[str, typer.Argument(help="A name that `ihvp backends` lists.")]
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
            metavar="MODULE:DATA",
            help="The test points to ask about, in the form of the training data, or a function that makes "
            "them.",
        ),
    ],
    top: Annotated[
        int, typer.Option(help="How many training examples to show for each test point.", min=1)
    ] = 10,
    which: Annotated[
        influence_command.Ranking,
        typer.Option(help="Rank by the size of the score, or list the helpful or the harmful examples only."),
    ] = influence_command.Ranking.both,
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
        influence_command.SolverName,
        typer.Option(help="How the systems are solved: direct up to some thousand parameters, else cg."),
    ] = influence_command.SolverName.cg,
    rtol: Annotated[
        float, typer.Option(help="The relative residual to solve to; 0.05 suits lissa.", min=0.0)
    ] = 1e-5,
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
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="What the page shows of a batch, if not its first array: `inputs(batch)`, one image, text "
            "or row for each example.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="The labels on the page, if not the first vector of integers: `labels(batch)`.",
        ),
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
    whole, test_data = influence_command.find_objective(objective), influence_command.find_data(test)
    shown = influence_command.make_report(report, whole, test_data, inputs, labels)
    with shared(whole) as part:
        influence_command.run(
            Console(),
            part,
            test_data,
            damping=damping,
            solver=solver.made(rtol),
            test_loss=None if test_loss is None else influence_command.find(test_loss),
            train_loss=None if train_loss is None else influence_command.find(train_loss),
            top=top,
            which=which,
            out=out,
            report=shown,
        )


app.add_typer(
    index_command.app, name="index", help="Keep projected gradients of the training examples, and ask them."
)


@app.command()
def evaluate(
    objective: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:OBJECTIVE", help="An `ihvp.Objective` of your trained model, as for `influence`."
        ),
    ],
    test: Annotated[
        str | None, typer.Option(metavar="MODULE:DATA", help="The test points, as for `influence`.")
    ] = None,
    train_fn: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="`train_fn(kept, seed)`: the parameters after training on the examples with these numbers.",
        ),
    ] = None,
    metric: Annotated[
        evaluate_command.Metric,
        typer.Option(
            help="lds: losses after training on subsets; loo: without single examples; brittleness: without "
            "the most helpful ones; detection: mislabelled examples by self-influence."
        ),
    ] = evaluate_command.Metric.lds,
    dampings: Annotated[str, typer.Option(help="λ; for lds several, with commas: 1e-3,1e-2,0.1.")] = "0",
    curvature: Annotated[
        evaluate_command.CurvatureName,
        typer.Option(help="auto: the Hessian, or Gauss–Newton where that is indefinite."),
    ] = evaluate_command.CurvatureName.auto,
    solver: Annotated[
        influence_command.SolverName | None,
        typer.Option(help="As for `influence`; by default cg, or the closed form of kfac and ekfac."),
    ] = None,
    rtol: Annotated[float, typer.Option(help="The relative residual to solve to.", min=0.0)] = 1e-5,
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
    test_loss: Annotated[str | None, typer.Option(metavar="MODULE:LOSS", help="As for `influence`.")] = None,
    train_loss: Annotated[str | None, typer.Option(metavar="MODULE:LOSS", help="As for `influence`.")] = None,
    wrong: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="For brittleness, the fraction of a batch that is predicted wrong.",
        ),
    ] = None,
    mislabelled: Annotated[
        str | None,
        typer.Option(metavar="MODULE:ARRAY", help="For detection, one boolean for each training example."),
    ] = None,
    config: Config = None,
) -> None:
    """Ask how good the scores of `ihvp influence` are on your model, by training it again.

    Beside the objective and the test points, `training.py` defines `train_fn(kept, seed)`, which trains a new
    model on some of the examples. `ihvp evaluate training:objective --test training:test_data --train-fn
    training:train_fn --dampings 1e-3,1e-2,1e-1 --out outcomes` prints the linear datamodelling score for each
    damping with its standard error (Park et al., "TRAK", 2023).
    """
    evaluate_command.run(
        Console(),
        evaluate_command.Places(objective, test, train_fn, test_loss, train_loss, wrong, mislabelled),
        metric,
        dampings=dampings,
        curvature=curvature,
        solver=None if solver is None else solver.made(rtol),
        subsets=subsets,
        seeds=seeds,
        jobs=jobs,
        out=out,
        plot=plot,
    )


@app.command()
def demo(
    backend: Annotated[
        str, typer.Option(help="Who differentiates: a name that `ihvp backends` lists.")
    ] = "numdiff",
    out: Annotated[
        Path, typer.Option(help="The folder for the picture; made if need be.", file_okay=False)
    ] = Path("demo"),
    config: Config = None,
) -> None:
    """Ask which training examples are behind a wrong prediction, and prove the answer by retraining.

    Trains a softmax regression on scikit-learn's handwritten digits, takes the test digit that it gets most
    wrong, and finds the training digits that helped and harmed that prediction most. Then it retrains without
    the ten most harmful, and compares the predicted change of the loss with the actual one. Takes well under
    a minute; needs `pip install 'ihvp[demo]'`.
    """
    demo_command.run(Console(), backend, out)


@app.command()
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
    if name is None:
        experiment_command.show(Console())
    elif name != "all":
        experiment_command.run_one(Console(), name, backend, out, full=full)
    elif not experiment_command.run_all(Console(), backend, out, full=full):
        raise typer.Exit(1)
