"""Objectives and operators pass between processes, and are copied, also after products."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import ihvp
from ihvp_torch import TorchBackend

X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(6, 4).sin()


def predict(net, batch):
    return net(batch).tanh()


def of_outputs(outputs, batch):
    return outputs.square().mean()


def loss(net, batch):
    return of_outputs(predict(net, batch), batch)


def operators():
    torch.manual_seed(0)
    net = nn.Linear(4, 2, dtype=torch.float64)
    objective = ihvp.Objective(loss, net, X, batch_size=3)
    H = ihvp.Hessian(objective)
    return {
        "Hessian": H,
        "compiled": ihvp.Hessian(ihvp.Objective(loss, net, X, backend=TorchBackend(net, compile=True))),
        "sum": 2 * H + 0.5 + ihvp.OPG(objective),
        "Gauss-Newton": ihvp.GaussNewton(ihvp.Objective(of_outputs, net, X, predict=predict)),
        "inverse": ihvp.inverse(H, damping=2.0),
        "factorised": ihvp.inverse(H, damping=2.0, solver=ihvp.Direct()),
        "differences": ihvp.Hessian(ihvp.Objective(loss, net, X, backend="numdiff")),
    }


@pytest.mark.parametrize(
    "again", [lambda A: pickle.loads(pickle.dumps(A)), copy.deepcopy], ids=["pickle", "copy"]
)
def test_operators_are_the_same_after_products(again, monkeypatch):
    monkeypatch.setattr("ihvp_torch._program._lower", lambda module, inputs: module)  # traced only: quick
    v = torch.linspace(-1, 1, 10, dtype=torch.float64)
    for name, A in operators().items():
        product = A @ v
        torch.testing.assert_close(again(A) @ v, product, msg=name)


def test_objectives_keep_what_was_found_of_the_loss():
    net = nn.Linear(4, 2, dtype=torch.float64)
    objective = ihvp.Objective(loss, net, X)
    rows = objective.per_example_gradients()
    other = pickle.loads(pickle.dumps(objective))
    assert str(other.report()) == str(objective.report())
    torch.testing.assert_close(other.per_example_gradients(), rows)
