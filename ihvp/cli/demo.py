"""``ihvp demo``: the training examples behind a wrong prediction."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from ihvp._registry import usable_plugin
from ihvp.cli import picture
from ihvp.cli.attribution import Attribution, Proof, Setting, attribute, prove, train, worst_mistake
from ihvp.cli.config import Config
from ihvp.experiments import digits
from ihvp.packages import required

T = TypeVar("T")

REMOVED = 10
"""How many training digits the proof retrains without."""


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
    plugin = usable_plugin(backend)
    required("matplotlib.figure", "ihvp demo", "pip install 'ihvp[demo]'")  # at once, not after the work
    training, test = digits.load()
    told = _Story()

    setting = told.step("Train", lambda: train(plugin, training, test))
    _report_model(told, setting, backend)
    index = worst_mistake(setting)
    attribution = told.step("Attribute", lambda: attribute(setting, index))
    _report_answer(told, setting, attribution)
    proof = told.step(
        "Retrain", lambda: prove(setting, attribution, attribution.influence.most_harmful(REMOVED)[0])
    )
    _report_proof(told, attribution, proof)
    path = out / "digits.png"
    told.step("Draw", lambda: picture.draw(setting, attribution, proof, path))
    told.say(f"The picture is in {path}")


class _Story:
    """Prints what was found, with the seconds that each step took."""

    def __init__(self) -> None:
        self.console = Console()

    def step(self, name: str, work: Callable[[], T]) -> T:
        """Do the work under a spinner."""
        start = time.perf_counter()
        with self.console.status(f"{name} …"):
            result = work()
        seconds = f"{time.perf_counter() - start:.1f} s"
        self.console.print(f"[bold]{name}[/bold] [dim]({seconds})[/dim]", highlight=False)
        return result

    def say(self, text: str) -> None:
        """Print a line as it is."""
        self.console.print(f"  {text}", markup=False, highlight=False, soft_wrap=True)


def _report_model(told: _Story, setting: Setting, backend: str) -> None:
    right = int((setting.predictions.argmax(axis=1) == setting.test.labels).sum())
    told.say(f"backend {backend} on {setting.device}, {setting.dtype}")
    told.say(
        f"softmax regression, {setting.optimum.weights.size} parameters, "
        f"{len(setting.train.labels):,} training digits, λ = {digits.DECAY:g}"
    )
    told.say(
        f"{setting.optimum.steps} Newton steps to a gradient of length {setting.optimum.gradient_norm:.1e} "
        f"(≤ {setting.precision.gradient_norm:.0e}, as {setting.dtype} allows)"
    )
    told.say(f"{right} of {len(setting.test.labels)} test digits are read right")


def _report_answer(told: _Story, setting: Setting, attribution: Attribution) -> None:
    index = attribution.index
    told.say(
        f"test digit {index} is a {setting.test.labels[index]}, read as "
        f"{setting.predictions[index].argmax()}, with loss {attribution.loss:.4f}: the worst mistake"
    )
    told.say(
        f"influence functions: H⁻¹ ∇L(z_test) by CG, recomputed residual {attribution.influence.residual:.1e}"
    )
    told.say("predicted rise of that loss when a training digit is removed (positive: it helped):")
    table = Table()
    for column in ("Helped most", "label", "score", "Harmed most", "label", "score"):
        table.add_column(column, justify="right")
    ranked = attribution.influence
    helpful, harmful = ranked.most_helpful(REMOVED)[0], ranked.most_harmful(REMOVED)[0]
    for pair in zip(helpful, harmful, strict=True):
        cells: list[str] = []
        for i in pair:
            cells += [f"digit {i}", str(setting.train.labels[i]), f"{attribution.scores[i]:+.4f}"]
        table.add_row(*cells)
    told.console.print(table)


def _report_proof(told: _Story, attribution: Attribution, proof: Proof) -> None:
    told.say(
        f"without the {len(proof.removed)} most harmful, the loss is {attribution.loss + proof.actual:.4f} "
        f"in place of {attribution.loss:.4f}"
    )
    told.say(f"predicted change {proof.predicted:+.4f}")
    told.say(f"actual change    {proof.actual:+.4f}")
