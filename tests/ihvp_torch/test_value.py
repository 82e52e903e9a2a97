"""The loss itself: evaluated as a gradient evaluates it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import ihvp
from ihvp.errors import LossNotScalar


def test_numpy_data_become_tensors(backend, net, square_loss, batch):
    expected = square_loss(net, [torch.from_numpy(array) for array in batch]).item()
    assert backend.value(square_loss, net, batch).item() == expected
    assert ihvp.Objective(square_loss, net, batch).value() == expected


def test_other_values_of_a_module_are_put_in_its_place(backend, net, square_loss, batch):
    shifted = backend.unflatten(torch.zeros(26, dtype=torch.float64), net)
    assert float(backend.value(square_loss, shifted, batch)) == pytest.approx(np.mean(batch[1] ** 2))
    objective = ihvp.Objective(square_loss, net, batch)
    assert objective.at(shifted).value() == pytest.approx(np.mean(batch[1] ** 2))


def test_buffers_parameters_and_gradients_stay(backend, square_loss, batch):
    module = nn.Sequential(nn.Linear(3, 2, dtype=torch.float64), nn.BatchNorm1d(2, dtype=torch.float64))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    value = backend.value(square_loss, module, batch)
    assert not value.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("place", ["parameters", "inputs"])
def test_a_loss_may_take_gradients_itself(backend, place):
    def loss(w, batch):
        x = batch[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad((w[0] * x).pow(2).sum(), w[0] if place == "parameters" else x)
        return slope.sum()

    w, x = [torch.tensor(3.0)], (torch.tensor([2.0]),)
    with torch.no_grad():
        assert float(backend.value(loss, w, x)) == (24.0 if place == "parameters" else 36.0)


def test_a_plain_number_is_a_value(backend, net, batch):
    assert backend.value(lambda model, data: 0.25, net, batch) == 0.25


def test_a_loss_for_each_example_is_refused(net, batch):
    objective = ihvp.Objective(lambda model, data: model(data[0]).sum(dim=1), net, batch)
    with pytest.raises(LossNotScalar):
        objective.value()
