"""What is behind one wrong prediction: influence functions, and the proof by retraining."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ihvp.algebra import to_numpy
from ihvp.backend import BackendPlugin
from ihvp.cli.newton import Optimum, minimise
from ihvp.experiments.digits import Digits, Problem, cross_entropy, probabilities
from ihvp.influence import Influence, Scores
from ihvp.solvers import CG


@dataclass(frozen=True)
class Precision:
    """How far the arithmetic allows to go: the length of the gradient, and the residual of CG."""

    gradient_norm: float
    rtol: float

    @classmethod
    def of(cls, eps: float) -> Precision:
        """What suits a dtype with the machine epsilon ``eps``."""
        return cls(1e-8, 1e-6) if eps < 1e-12 else cls(1e-5, 1e-4)


@dataclass(frozen=True)
class Setting:
    """The trained model."""

    problem: Problem
    train: Digits
    test: Digits
    optimum: Optimum
    precision: Precision
    # dtype, device: what the backend computes in and on
    dtype: str
    device: str

    @property
    def predictions(self) -> NDArray[np.float64]:
        """The model's probabilities for the test digits, ``(297, 10)``."""
        return probabilities(_matrix(self.optimum), self.test.images)


@dataclass(frozen=True)
class Attribution:
    """Why the model errs on a test digit."""

    index: int  # the test digit's
    loss: float  # its loss
    influence: Scores  # of every training digit on the test digit, (1, N)

    @property
    def scores(self) -> NDArray[np.floating]:
        """The predicted rise of the loss when each training digit is removed, ``(N,)``."""
        row: NDArray[np.floating] = self.influence[0]
        return row


@dataclass(frozen=True)
class Proof:
    """The change of the test digit's loss without some training digits: as predicted, and by retraining."""

    removed: NDArray[np.intp]
    predicted: float
    actual: float


def train(plugin: BackendPlugin, train: Digits, test: Digits) -> Setting:
    """Train to the optimum."""
    problem = Problem(plugin)
    first = problem.objective(np.zeros(650), train.batch())
    precision = Precision.of(first.space.eps)
    start = to_numpy(first.backend.flatten(first.params))
    optimum = minimise(lambda w: problem.objective(w, train.batch()), start, precision.gradient_norm)
    return Setting(problem, train, test, optimum, precision, start.dtype.name, first.backend.device)


def worst_mistake(setting: Setting) -> int:
    """The misclassified test digit with the highest loss."""
    chances = setting.predictions[np.arange(len(setting.test.labels)), setting.test.labels]
    wrong = setting.predictions.argmax(axis=1) != setting.test.labels
    return int(np.argmin(np.where(wrong, chances, np.inf)))


def attribute(setting: Setting, index: int) -> Attribution:
    """The influence of every training digit on the loss at test digit ``index``.

    Both losses are without the regulariser, which stays when a digit goes.
    """
    problem = setting.problem
    influence = Influence(
        problem.objective(setting.optimum.weights, setting.train.batch()),
        solver=CG(rtol=setting.precision.rtol),
        train_loss=problem.data_loss,
    )
    question = _single(setting.test, index).batch()
    scores = influence.scores(question, test_loss=problem.data_loss, progress=False)
    return Attribution(index, _loss(setting.test, index, setting.optimum), scores)


def prove(setting: Setting, attribution: Attribution, removed: NDArray[np.intp]) -> Proof:
    """Retrain without the digits ``removed`` and compare."""
    masses = np.ones(len(setting.train.labels))
    masses[removed] = 0.0
    retrained = minimise(
        lambda w: setting.problem.objective(w, setting.train.batch(masses)),
        setting.optimum.weights,
        setting.precision.gradient_norm,
    )
    actual = _loss(setting.test, attribution.index, retrained) - attribution.loss
    return Proof(removed, float(attribution.scores[removed].sum()), actual)


def _single(digits: Digits, index: int) -> Digits:
    rows = slice(index, index + 1)
    return Digits(digits.images[rows], digits.labels[rows])


def _loss(digits: Digits, index: int, optimum: Optimum) -> float:
    # The same text of the loss, read by numpy: in float64 whatever the backend computes in.
    return float(cross_entropy(np)({"weights": _matrix(optimum)}, _single(digits, index).batch()))


def _matrix(optimum: Optimum) -> NDArray[np.float64]:
    return optimum.weights.astype(np.float64).reshape(Problem.shape)
