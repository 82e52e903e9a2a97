"""How often intervals of 95 % cover the truth, over 1,000 made data sets that are fitted as one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

import ihvp

SETS, N, TRUTH = 1000, 150, np.array([0.3, -0.6])
MODELS = {
    "logistic": (
        expit,
        lambda mean: mean * (1 - mean),
        lambda random, mean: random.uniform(size=mean.shape) < mean,
    ),
    "Poisson": (np.exp, lambda mean: mean, lambda random, mean: random.poisson(mean)),
}


@pytest.mark.parametrize("name", MODELS)
def test_intervals_cover_as_often_as_they_say(name):
    mean, variance, draw = MODELS[name]
    random = np.random.default_rng(0)
    x = np.column_stack([np.ones(N), random.normal(size=N)])
    y = draw(random, np.repeat(mean(x @ TRUTH)[:, None], SETS, axis=1)).astype(float)

    def gradient(w, batch):
        """Of the sum over the data sets, for weights (2, SETS)."""
        x, y = batch
        return x.T @ (mean(x @ w) - y) / len(x)

    w = np.repeat(TRUTH[:, None], SETS, axis=1)
    for _ in range(8):
        hessians = np.einsum("ni,nj,ns->sij", x, x, variance(mean(x @ w))) / N
        w = w - np.linalg.solve(hessians, gradient(w, (x, y)).T[:, :, None])[:, :, 0].T
    objective = ihvp.Objective(params=w, data=(x, y), grad=gradient, checks=False)
    covariance = ihvp.covariance(objective, solver=ihvp.CG(rtol=1e-8))
    # The data sets do not touch one another: the sum of their first columns has each one's first variance.
    units = np.repeat(np.eye(2), SETS, axis=0)
    variances = np.sum((covariance @ units) * units, axis=1).reshape(2, SETS)
    covered = np.abs(w - TRUTH[:, None]) < 1.959964 * np.sqrt(variances)
    assert np.all((covered.mean(axis=1) > 0.93) & (covered.mean(axis=1) < 0.97)), covered.mean(axis=1)
