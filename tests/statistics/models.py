"""Five regressions on made data, and what statsmodels says of them (recorded.json, written by record.py)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import ihvp

_FILE = Path(__file__).parent / "recorded.json"
NAMES = ("OLS", "Logit", "Poisson", "MNLogit", "Gamma")
N, CLASSES = 60, 3

# The streams of this generator are frozen, unlike those of the new ones.
_random = np.random.RandomState(5)
# The columns have unlike sizes, and they are correlated.
X = np.column_stack([np.ones(N), _random.normal(size=N), 30 + 10 * _random.normal(size=N)])
X[:, 2] += 6 * X[:, 1]
_eta = X @ [0.4, 0.6, -0.02]
CLUSTERS = np.array([f"site {i}" for i in _random.randint(9, size=N)])
# Errors whose size follows the regressor, so that robust standard errors differ from the others.
TARGETS = {
    "OLS": X @ [1.0, -2.0, 0.1] + _random.normal(size=N) * (0.3 + np.abs(X[:, 1])),
    "Logit": (_random.uniform(size=N) < 1 / (1 + np.exp(-_eta))).astype(float),
    "Poisson": _random.poisson(np.exp(_eta)).astype(float),
    "MNLogit": _random.randint(CLASSES, size=N).astype(float),
    "Gamma": _random.gamma(2.0, np.exp(_eta) / 2.0),
}


@dataclass(frozen=True)
class Model:
    """Data, and the recorded numbers: params (P,), dispersion, nonrobust, HC0, … each (P,)."""

    name: str
    recorded: dict

    @property
    def y(self):
        return TARGETS[self.name]

    @property
    def dispersion(self):
        return self.recorded["dispersion"]

    def __getitem__(self, key):
        return np.array(self.recorded[key])


def model(name):
    return Model(name, json.loads(_FILE.read_text())["models"][name])


def gradient(name):
    """The gradient of the mean loss, in numpy; the weights of MNLogit are those of a class after another."""

    def of(w, batch):
        x, y = batch
        if name == "MNLogit":
            scores = np.column_stack([np.zeros(len(y)), x @ w.reshape(CLASSES - 1, -1).T])
            p = np.exp(scores - scores.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            error = p[:, 1:] - (y[:, None] == np.arange(1, CLASSES))
            return (error.T @ x / len(y)).reshape(-1)
        eta = x @ w
        error = {
            "OLS": lambda: eta - y,
            "Logit": lambda: 1 / (1 + np.exp(-eta)) - y,
            "Poisson": lambda: np.exp(eta) - y,
            "Gamma": lambda: 1 - y * np.exp(-eta),
        }[name]()
        return x.T @ error / len(y)

    return of


def leverage_factor(name, w):
    """What ``x H⁻¹ x / N`` is multiplied by to be the leverage: how far a fitted value follows its target."""
    p = 1 / (1 + np.exp(-X @ w))
    return {"OLS": 1.0, "Logit": p * (1 - p), "Poisson": np.exp(X @ w), "Gamma": 1.0}[name]


def delta_function(w, exp):
    """Two functions of the parameters, whose covariance is recorded; ``exp`` is the framework's."""
    return exp(w[1] / 3) * w[2], w[0] * w[1]


def delta_gradient(w):
    """Their derivatives, ``(P, 2)``."""
    g = np.zeros((w.size, 2))
    g[1, 0], g[2, 0] = np.exp(w[1] / 3) * w[2] / 3, np.exp(w[1] / 3)
    g[0, 1], g[1, 1] = w[1], w[0]
    return g


def deletion(model, objective, covariance):
    """Cook's distances and DFBETAS by the formulas of the tutorial."""
    inverse = ihvp.inverse(ihvp.Hessian(objective), solver=ihvp.Direct(rtol=1e-6))
    leverage = leverage_factor(model.name, model["params"]) * np.sum(X.T * (inverse @ X.T), axis=0) / N
    rows = np.asarray(objective.per_example_gradients())
    removed = -(inverse @ rows.T.copy()) / N / (1 - leverage)
    cook = np.sum(removed * np.linalg.solve(np.asarray(covariance.to_dense()), removed), axis=0) / 3
    errors = np.asarray(ihvp.standard_errors(covariance))[:, None]
    if model.name == "OLS":  # with the variance of the errors without the example
        residuals = model.y - X @ model["params"]
        rest = (model.dispersion * (N - 3) - residuals**2 / (1 - leverage)) / (N - 4)
        errors = errors * np.sqrt(rest / model.dispersion)
    return cook, (removed / errors).T
