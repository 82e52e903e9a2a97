"""Arguments of the wrong kind, with torch: each is named, or means something after all."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from . import calls

VALUES = {
    "tensor of another dtype": lambda: torch.ones(3, dtype=torch.float32),
    "integer tensor": lambda: torch.arange(3),
    "complex tensor": lambda: torch.ones(3, dtype=torch.complex128),
    "0-d tensor": lambda: torch.tensor(0.5),
    "empty tensor": lambda: torch.zeros(0, dtype=torch.float64),
    "wrong length of tensor": lambda: torch.ones(5, dtype=torch.float64),
    "sparse tensor": lambda: torch.eye(3, dtype=torch.float64).to_sparse(),
    "meta tensor": lambda: torch.ones(3, dtype=torch.float64, device="meta"),
    "tensor with a gradient": lambda: torch.ones(3, dtype=torch.float64, requires_grad=True),
    "network": lambda: torch.nn.Linear(3, 1),
    "frozen network": lambda: torch.nn.Linear(3, 1).requires_grad_(False),
    "loss module": torch.nn.CrossEntropyLoss,
    "loss of outputs": lambda: lambda outputs, y: torch.nn.functional.mse_loss(outputs, y),
    "optimizer": lambda: torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1),
    "state dict": lambda: torch.nn.Linear(3, 1).state_dict(),
    "parameter generator": lambda: torch.nn.Linear(3, 1).parameters(),
    "generator of numbers": torch.Generator,
    "dtype": lambda: torch.float64,
    "device": lambda: torch.device("cpu"),
    "loader": lambda: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 3))),
    "data set": lambda: torch.utils.data.TensorDataset(torch.ones(4, 3)),
}


def loss(params, batch):
    x, y = batch
    return ((x @ params["w"] - y) ** 2).mean() / 2


def predict(params, batch):
    return batch[0] @ params["w"]


def output_loss(outputs, batch):
    return ((outputs - batch[1]) ** 2).mean() / 2


@functools.cache
def made():
    problem = calls.Problem(
        {"loss": loss},
        {"w": torch.tensor(calls.W)},
        (torch.tensor(calls.X), torch.tensor(calls.Y)),
        predict,
        output_loss,
    )
    return [*calls.of_objectives(problem), *calls.removals(problem, loss)]


@pytest.mark.parametrize("seed", range(3))
def test_every_wrong_argument_is_named(seed):
    found = calls.outcomes(made(), 40, seed, VALUES)
    assert not found.unnamed, "\n".join(found.unnamed)
    assert found.counts["named"] > 20


def test_the_values_are_as_before():
    np.testing.assert_array_equal(calls.X, np.random.default_rng(0).standard_normal((6, 3)))
