"""Arguments of the wrong kind, with torch: each is named, or means something after all."""

from __future__ import annotations

import functools

import pytest
import torch

import ihvp
from ihvp import errors

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


@functools.cache
def made():
    return calls.of_losses(torch.tensor)


@pytest.mark.parametrize("seed", range(3))
def test_every_wrong_argument_is_named(seed):
    found = calls.outcomes(made(), 40, seed, VALUES)
    assert not found.unnamed, "\n".join(found.unnamed)
    assert found.counts["named"] > 20


def test_what_torch_raises_in_a_loss_keeps_its_text():
    model = torch.nn.Linear(3, 2)
    data = torch.ones(4, 3), torch.zeros(4, dtype=torch.long)
    objective = ihvp.Objective(torch.nn.CrossEntropyLoss(), model, data)
    with pytest.raises(
        errors.LossFailed, match=r"The gradient failed with .*loss\(params, batch\)"
    ) as caught:
        objective.gradient()
    assert str(caught.value.__cause__) in str(caught.value)
    with pytest.raises(errors.ParameterError, match=r"Objective\(loss, params, data\)"):
        ihvp.Objective(model, torch.nn.functional.cross_entropy, data)


def test_a_loss_that_needs_two_examples_says_so_of_a_single_one():
    def normalised(params, batch):
        x, y = batch
        outputs = torch.nn.functional.batch_norm(x @ params["w"][:, None], None, None, training=True)
        return ((outputs[:, 0] - y) ** 2).mean()

    data = torch.tensor(calls.X), torch.tensor(calls.Y)
    objective = ihvp.Objective(normalised, {"w": torch.tensor(calls.W)}, data, checks=False)
    with pytest.raises(errors.LossFailed, match=r"single example failed .*more than 1 value per channel"):
        objective.per_example_gradients()


def test_a_vector_that_requires_a_gradient_is_a_vector():
    objective = ihvp.Objective(
        calls.loss, {"w": torch.tensor(calls.W)}, (torch.tensor(calls.X), torch.tensor(calls.Y))
    )
    v = torch.ones(3, dtype=torch.float64)
    found = ihvp.Hessian(objective) @ v.clone().requires_grad_()
    assert not found.requires_grad
    torch.testing.assert_close(found, ihvp.Hessian(objective) @ v, rtol=0, atol=0)
