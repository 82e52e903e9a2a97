"""The experiments of the notebooks that this library grew from, each run with one command.

``ihvp experiment NAME`` runs one. A module each, imported when its experiment runs; every one has

    run(out: Path, backend: str | None = None) -> Finding

which writes ``NAME.csv`` and ``NAME.png`` into ``out``. With ``backend=None`` an experiment that compares
backends takes all that are installed, and any other the one it names in its own module.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from ihvp.errors import InvalidOption, UnknownExperiment
from ihvp.experiments.finding import Finding
from ihvp.packages import required

__all__ = ["EXPERIMENTS", "Experiment", "Finding", "run"]


class Experiment(NamedTuple):
    """Where an experiment lives, what it shows, whether ``run`` takes ``full=True``, and its one backend.

    With ``only=None`` it runs on every backend.
    """

    module: str
    about: str
    has_full: bool = False
    only: str | None = None


EXPERIMENTS = {
    "complexity": Experiment("ihvp.experiments.complexity", "The time of H v grows linearly in p.", True),
    "scale": Experiment("ihvp.experiments.scale", "LiSSA's path in the plane for four scales."),
    "damping": Experiment("ihvp.experiments.damping", "LiSSA's path in the plane for four dampings."),
    "step": Experiment(
        "ihvp.experiments.step", "The error of finite differences against their step.", only="numdiff"
    ),
    "modes": Experiment("ihvp.experiments.modes", "Four ways to H v: their time and memory."),
    "hessian": Experiment(
        "ihvp.experiments.hessian", "H and G of a small network, and K eigenpairs in their place."
    ),
    "loo": Experiment("ihvp.experiments.loo", "Predicted against actual change of the loss, by retraining."),
}


def run(name: str, out: Path, backend: str | None = None, *, full: bool = False) -> Finding:
    """Run one experiment, and write ``NAME.csv`` and ``NAME.png`` into the folder ``out``.

    Without ``backend`` the experiment chooses one. That matplotlib is missing is found before any work.
    """
    if name not in EXPERIMENTS:
        raise UnknownExperiment(name, EXPERIMENTS)
    experiment = EXPERIMENTS[name]
    if full and not experiment.has_full:
        long = ", ".join(name for name, other in EXPERIMENTS.items() if other.has_full)
        raise InvalidOption("full", full, f"False for {name!r}; a long form has: {long}")
    if experiment.only is not None and backend not in (None, experiment.only):
        raise InvalidOption(
            "backend", backend, f"{experiment.only!r}, the one backend that {name!r} is about"
        )
    required("matplotlib.figure", "ihvp experiment", "pip install 'ihvp[plot]'")
    out.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"full": True} if full else {}
    finding: Finding = import_module(experiment.module).run(out, backend, **options)
    return finding
