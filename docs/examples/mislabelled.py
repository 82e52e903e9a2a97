"""A tenth of the labels is flipped; in what order are they found?

Checks handwritten digits in the order of their self-influence and of their losses, for a model that is held
by its weight decay and for one that fits its few digits almost perfectly:

    python docs/examples/mislabelled.py            # --picture writes docs/images/mislabelled.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import scipy.optimize
from sklearn.datasets import load_digits

import ihvp
from ihvp.influence import DetectionCurve, detection_curve

PICTURE = Path(__file__).parents[1] / "images" / "mislabelled.png"
FLIPPED = 0.1
SETTINGS = {"1,500 digits, weight decay 0.01": (1500, 1e-2), "400 digits, weight decay 0.0001": (400, 1e-4)}


def probabilities(w, x):
    scores = x @ w
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def train_loss(w, batch):
    """The gradient of the cross-entropy of a softmax regression."""
    x, targets = batch
    return x.T @ (probabilities(w, x) - targets) / len(x)


def train(x: np.ndarray, targets: np.ndarray, decay: float) -> ihvp.Objective:
    """The objective at its optimum."""

    def loss(w, batch):
        x, targets = batch
        return -np.log((probabilities(w, x) * targets).sum(axis=1)).mean() + decay / 2 * (w * w).sum()

    def gradient(w, batch):
        return train_loss(w, batch) + decay * w

    objective = ihvp.Objective(loss, np.zeros((x.shape[1], 10)), (x, targets), grad=gradient)

    def at(point):
        return objective.at(point.reshape(-1, 10))

    return at(
        scipy.optimize.minimize(
            lambda point: at(point).value(),
            np.zeros(objective.num_params),
            jac=lambda point: at(point).gradient(),
            hessp=lambda point, v: ihvp.Hessian(at(point)) @ v,
            method="trust-ncg",
            options={"gtol": 1e-7},
        ).x
    )


def measure(examples: int, decay: float, seed: int) -> tuple[DetectionCurve, DetectionCurve]:
    """The curves by self-influence and by loss."""
    images, labels = load_digits(return_X_y=True)
    x = np.column_stack([images / 16, np.ones(len(images))])[:examples]
    generator, labels = np.random.default_rng(seed), labels[:examples].copy()
    flipped = np.zeros(examples, dtype=bool)
    flipped[generator.choice(examples, int(FLIPPED * examples), replace=False)] = True
    labels[flipped] = (labels[flipped] + generator.integers(1, 10, flipped.sum())) % 10
    targets = np.eye(10)[labels]
    objective = train(x, targets, decay)
    influence = ihvp.Influence(objective, solver=ihvp.Direct(rtol=1e-6), train_loss=train_loss)
    losses = -np.log((probabilities(objective.params, x) * targets).sum(axis=1))
    return detection_curve(influence.self_influence(), flipped), detection_curve(losses, flipped)


def mean(curves: list[DetectionCurve]) -> DetectionCurve:
    return DetectionCurve(curves[0].checked, np.mean([curve.found for curve in curves], axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--picture", action="store_true")
    options = parser.parse_args()
    found = {}
    for name, (examples, decay) in SETTINGS.items():
        pairs = [measure(examples, decay, seed) for seed in range(options.seeds)]
        found[name] = [mean(list(curves)) for curves in zip(*pairs, strict=True)]
        for by, curve in zip(("self-influence", "loss"), found[name], strict=True):
            parts = ", ".join(
                f"{curve.at(part):.1%} in the first {part:.0%}" for part in (0.05, 0.1, 0.15, 0.2)
            )
            print(f"{name}, by {by}: {parts}")
    if options.picture:
        draw(found)


def draw(found: dict[str, list[DetectionCurve]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.4), layout="constrained", dpi=120)
    for ax, (name, (influence, loss)) in zip(figure.subplots(1, 2), found.items(), strict=True):
        influence.plot(ax, label="by self-influence")
        loss.plot(ax, label="by loss")
        ax.set_xlim(0, 0.4)
        ax.set_title(name, fontsize=11)
    figure.savefig(PICTURE)


if __name__ == "__main__":
    main()
