"""Builds an index of made data, slowly, for tests that kill it: ``killed_build.py FOLDER``."""

from __future__ import annotations

import sys

import numpy as np

import ihvp
from ihvp.influence import blocks

CHUNK = 4


def grad(w, batch):
    x, y = batch
    return x.T @ (np.tanh(x @ w) - y) / len(x)


def objective():
    x = np.random.default_rng(0).standard_normal((60, 30))
    return ihvp.Objective(params=np.linspace(-1, 1, 30), data=(x, np.sign(x[:, 0])), grad=grad)


if __name__ == "__main__":
    blocks._EXAMPLES = CHUNK
    ihvp.build_index(objective(), sys.argv[1], ihvp.Projection(8, seed=3))
