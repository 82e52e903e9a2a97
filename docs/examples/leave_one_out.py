"""Softmax regression on handwritten digits: what removing training digits does, predicted and proved.

Each removal is trained to its exact optimum. Figure 2 of Koh and Liang (ICML 2017), on every backend:

    python docs/examples/leave_one_out.py torch jax tf numdiff

With --picture it writes docs/images/leave_one_out.png.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")  # read when JAX is imported

import numpy as np
import scipy.linalg

import ihvp
from ihvp._registry import usable_plugin
from ihvp.backend import GradientFunction
from ihvp.cli import digits
from ihvp.influence import LeaveOneOut

PICTURE = Path(__file__).parents[1] / "images" / "leave_one_out.png"

SETTINGS = {
    "CG": {"solver": ihvp.CG(rtol=1e-6)},
    "Direct": {"solver": ihvp.Direct()},
    "CG, second order": {"solver": ihvp.CG(rtol=1e-6), "second_order": True},
    "LiSSA": {"solver": ihvp.LiSSA(batch_size=100, num_samples=4, rtol=None)},
}


class Model:
    """The optimum ``(65, 10)``, and the optima without some digits, by numpy in float64."""

    def __init__(self) -> None:
        self.train, self.test = digits.load()
        self.weights, self.known = np.zeros((65, 10)), {}
        while np.linalg.norm(g := self.gradient(self.weights)) > 1e-12:
            self.factor = scipy.linalg.cho_factor(self.hessian(self.weights))
            self.weights = self.weights - scipy.linalg.cho_solve(self.factor, g.ravel()).reshape(65, 10)
        chances = digits.probabilities(self.weights, self.test.images)
        wrong = np.flatnonzero(chances.argmax(axis=1) != self.test.labels)
        self.question = wrong[chances[wrong, self.test.labels[wrong]].argmin()]

    def gradient(self, weights: np.ndarray, masses: np.ndarray | None = None) -> np.ndarray:
        return digits.regularised_gradient({"weights": weights}, self.train.batch(masses))["weights"]

    def hessian(self, weights: np.ndarray) -> np.ndarray:
        x, p = self.train.images, digits.probabilities(weights, self.train.images)
        outputs = np.einsum("nc,cd->ncd", p, np.eye(10)) - np.einsum("nc,nd->ncd", p, p)
        hessian = np.einsum("ni,ncd,nj->icjd", x, outputs, x, optimize=True).reshape(650, 650) / len(x)
        return hessian + digits.DECAY * np.eye(650)

    def without(self, removed: np.ndarray) -> np.ndarray:
        """Newton's method from the optimum on, with the one factor: a digit hardly changes the Hessian."""
        if (key := tuple(removed)) not in self.known:
            masses, weights = np.ones(len(self.train.labels)), self.weights
            masses[removed] = 0
            while np.linalg.norm(g := self.gradient(weights, masses)) > 1e-10:
                weights = weights - scipy.linalg.cho_solve(self.factor, g.ravel()).reshape(65, 10)
            self.known[key] = weights
        return self.known[key]


def measure(model: Model, backend: str, removed: np.ndarray, setting: dict) -> LeaveOneOut:
    """The removals on one backend. The regulariser stays when a digit goes, and is not asked about."""
    plugin = usable_plugin(backend)
    problem, dialect = digits.Problem(plugin), plugin.dialect()
    data_loss = problem.data_loss
    if plugin.differentiates == "gradient":
        data_loss = GradientFunction(data_loss, digits.cross_entropy(np))
    rows = slice(model.question, model.question + 1)
    return ihvp.leave_one_out(
        problem.objective(model.weights.ravel(), model.train.batch()),
        lambda removed, start: dialect.parameters({"weights": model.without(removed)}),
        removed,
        digits.Digits(model.test.images[rows], model.test.labels[rows]).batch(),
        data_loss,
        train_loss=data_loss,
        **setting,
    )


def draw(shown: dict[str, LeaveOneOut]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(shown), 4.4), layout="constrained", dpi=120)
    for ax, (name, removals) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
        removals.plot(ax)
        ax.set_title(f"{name}\n{ax.get_title()}", fontsize=10)
    figure.savefig(PICTURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("backends", nargs="*", default=["numdiff"])
    parser.add_argument("--removals", type=int, default=500)
    parser.add_argument("--picture", action="store_true")
    options = parser.parse_args()
    model = Model()
    removed = np.random.default_rng(0).choice(len(model.train.labels), options.removals, replace=False)
    for backend in options.backends:
        results = {name: measure(model, backend, removed, setting) for name, setting in SETTINGS.items()}
        for name, found in results.items():
            print(f"{backend}, {name}: r {found.pearson}, Spearman {found.spearman}, slope {found.slope:.4f}")
    if options.picture:
        draw({"first order": results["CG"], "second order": results["CG, second order"]})


if __name__ == "__main__":
    main()
