"""Ridge regression by numpy, whose optimum on any subset has a closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import ihvp
from ihvp.backend import GradientFunction

N, P, TESTS = 40, 4, 6


def loss(w, batch):
    x, y = batch
    return ((x @ w - y) ** 2).mean() / 2


def gradient(w, batch):
    x, y = batch
    return x.T @ (x @ w - y) / len(y)


def fitted(x, y):
    return np.linalg.solve(x.T @ x + 0.1 * np.eye(P), x.T @ y)


@dataclass(frozen=True, eq=False)
class Ridge:
    """What workers are sent."""

    x: np.ndarray
    y: np.ndarray

    def __call__(self, kept, seed):
        return fitted(self.x[kept], self.y[kept]) + 1e-3 * seed


class Problem:
    def __init__(self):
        rng = np.random.default_rng(1)
        x = rng.normal(size=(N + TESTS, P))
        y = x @ np.ones(P) + rng.normal(size=N + TESTS)
        self.data, self.test = (x[:N], y[:N]), (x[N:], y[N:])
        self.train = Ridge(*self.data)
        self.objective = ihvp.Objective(loss, fitted(*self.data), self.data, grad=gradient)

    def losses(self, kept, seed=0):
        """By the definition, at each test point."""
        x, y = self.test
        return (x @ self.train(kept, seed) - y) ** 2 / 2

    def wrong(self, w, batch):
        """Predictions have a sign, which is right or not."""
        x, y = batch
        return (np.sign(x @ w) != np.sign(y)).mean()


@pytest.fixture(scope="session")
def problem():
    return Problem()


@pytest.fixture(scope="session")
def sizes():
    """Another question: the size of a prediction, with its gradient."""
    return GradientFunction(
        lambda w, batch: (batch[0] * (batch[0] @ w)[:, None]).mean(axis=0) * 2,
        lambda w, batch: ((batch[0] @ w) ** 2).mean(),
    )
