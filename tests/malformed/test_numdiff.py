"""Arguments of the wrong kind, with gradients by hand: each is named, or means something after all."""

from __future__ import annotations

import pytest

import ihvp

from . import calls


def gradient(w, batch):
    x, y = batch
    return x.T @ (x @ w - y) / len(y)


def value(w, batch):
    x, y = batch
    return ((x @ w - y) ** 2).mean() / 2


def problem():
    return calls.Problem({"grad": gradient}, calls.W, (calls.X, calls.Y))


def made():
    source = ihvp.backend.GradientFunction(gradient, value)
    return [
        *calls.of_matrices(),
        *calls.of_objectives(problem()),
        *calls.removals(problem(), source),
        *calls.evaluations(problem(), source),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_every_wrong_argument_is_named(seed):
    found = calls.outcomes(made(), 100, seed)
    assert not found.unnamed, "\n".join(found.unnamed)
    assert found.counts["named"] > 60
