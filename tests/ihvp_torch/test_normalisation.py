"""Every path through layers that normalise, against differences of gradients.

``torch.func.hessian``, a vmapped double backward pass, is wrong for some of them by up to 39 % (torch 2.13).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ihvp_torch._backend import TorchBackend

LAYERS = {
    "layer norm": lambda: nn.LayerNorm(6),
    "layer norm without parameters": lambda: nn.LayerNorm(6, elementwise_affine=False),
    "layer norm over two axes": lambda: nn.LayerNorm((4, 6)),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "group norm without parameters": lambda: nn.GroupNorm(2, 4, affine=False),
    "instance norm": lambda: nn.InstanceNorm1d(4, affine=True),
    "batch norm": lambda: nn.BatchNorm1d(4),
    "batch norm in evaluation": lambda: nn.BatchNorm1d(4).eval(),
    "root mean square norm": lambda: nn.RMSNorm(6),
    "local response norm": lambda: nn.LocalResponseNorm(3, alpha=0.5),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)),
    "weight norm of columns": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 6), dim=1),
    "weight norm of all": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 6), dim=None),
    "weight norm of channels": lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3, padding=1)),
    "weight norm of inner axis": lambda: nn.utils.parametrizations.weight_norm(
        nn.Conv1d(4, 4, 3, padding=1), dim=1
    ),
    "weight norm by a hook": lambda: hooked_weight_norm(nn.Linear(6, 6)),
    "weight norm of columns by a hook": lambda: hooked_weight_norm(nn.Linear(6, 6), dim=1),
}
# Relative to the largest entry: the error of the differences themselves is below 1e-9 here.
RTOL = 1e-7


def hooked_weight_norm(layer, **options):
    with pytest.warns(FutureWarning, match="deprecated"):
        return nn.utils.weight_norm(layer, **options)


class Net(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.hidden, self.layers, self.out = nn.Linear(2, 6), nn.Sequential(*layers), nn.Linear(24, 1)

    def forward(self, x):
        return self.out(self.layers(torch.tanh(self.hidden(x))).flatten(1))[:, 0]


def make(*names: str) -> nn.Module:
    torch.manual_seed(0)
    model = Net(*(LAYERS[name]() for name in names)).double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
        for part in model.modules():
            if isinstance(part, nn.BatchNorm1d):
                part.running_mean.uniform_(-0.3, 0.3)
                part.running_var.uniform_(0.2, 2.0)
    return model


def loss(model, batch):
    return error(model(batch[0]), batch)


def error(outputs, batch):
    return (outputs - batch[1]).tanh().square().mean()


def squared_error(outputs, batch):
    return (outputs - batch[1]).square().mean()


@pytest.fixture
def batch():
    random = torch.Generator().manual_seed(1)
    return tuple(torch.randn(shape, generator=random, dtype=torch.float64) for shape in ((5, 4, 2), (5,)))


@pytest.fixture
def block():
    """As wide as the networks need, cut to their number of parameters."""
    return torch.randn(400, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=RTOL * np.abs(expected).max())


@pytest.mark.parametrize("name", LAYERS)
def test_hessian_products_are_differences_of_the_gradient(backend, differences, batch, block, name):
    model = make(name)
    hessian = differences(loss, model, batch).hessian
    v = block[: len(hessian)]
    close(backend.hvp(loss, model, batch, v[:, 0]), hessian @ v[:, 0].numpy())
    close(backend.hvp(loss, model, batch, v[:, :2]), hessian @ v[:, :2].numpy())
    close(backend.hvp(loss, model, batch, v), hessian @ v.numpy())
    product = backend.linearize(loss, model, batch)
    for columns in (v[:, 0], v[:, :2], v):
        close(product(columns), hessian @ columns.numpy())


@pytest.mark.parametrize("name", LAYERS)
def test_traced_products_are_differences_of_the_gradient(
    differences, batch, block, caplog, monkeypatch, name
):
    # What the compiler is given; lowering each would take it half a minute.
    monkeypatch.setattr("ihvp_torch._program._lower", lambda module, inputs: module)
    model = make(name)
    hessian = differences(loss, model, batch).hessian
    v = block[: len(hessian)]
    product = TorchBackend(compile=True).linearize(loss, model, batch)
    for columns in (v[:, 0], v[:, :4]):
        close(product(columns), hessian @ columns.numpy())
    assert not [record for record in caplog.records if record.name == "ihvp"]


def test_compiled_products_are_differences_of_the_gradient(differences, batch, block, caplog):
    model = make("layer norm", "weight norm by a hook")
    hessian = differences(loss, model, batch).hessian
    v = block[: len(hessian), 0]
    close(TorchBackend(compile=True).hvp(loss, model, batch, v), hessian @ v.numpy())
    assert not [record for record in caplog.records if record.name == "ihvp"]


@pytest.mark.parametrize("name", LAYERS)
def test_rows_and_their_products_are_gradients_of_single_examples(backend, differences, batch, block, name):
    model = make(name)
    rows = differences(loss, model, batch).rows
    v = block[: rows.shape[1]]
    close(backend.per_example_grads(loss, model, batch), rows)
    close(backend.example_products(loss, model, batch, v[:, 0]), rows @ v[:, 0].numpy())
    close(backend.example_products(loss, model, batch, v), rows @ v.numpy())


@pytest.mark.parametrize("name", LAYERS)
def test_gauss_newton_products_are_those_of_the_jacobian(backend, differences, batch, block, name):
    model = make(name)
    jacobian = np.stack(
        [differences(lambda m, b, i=i: m(b[0])[i], model, batch).gradient() for i in range(len(batch[0]))]
    )
    matrix = 2 / len(jacobian) * jacobian.T @ jacobian
    v = block[: len(matrix)]
    predict = lambda m, b: m(b[0])  # noqa: E731
    close(backend.gnvp(predict, squared_error, model, batch, v[:, 0]), matrix @ v[:, 0].numpy())
    close(backend.gnvp(predict, squared_error, model, batch, v[:, :3]), matrix @ v[:, :3].numpy())


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_by_inputs_are_differences_of_the_gradient(backend, differences, batch, block, name):
    model = make(name)
    oracle = differences(loss, model, batch)
    v = block[: len(oracle.point), :3]
    by_x, _ = backend.input_derivatives(loss, model, batch, v[:, 0])
    close(by_x, oracle.by_inputs(v[:, 0].numpy()))
    by_x, _ = backend.input_derivatives(loss, model, batch, v)
    close(by_x[2], oracle.by_inputs(v[:, 2].numpy()))


@pytest.mark.parametrize("name", LAYERS)
def test_module_is_as_it_was(backend, batch, block, name):
    model = make(name)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    parameters = list(model.parameters())
    attributes = [{key: id(value) for key, value in vars(part).items()} for part in model.modules()]
    v = block[: sum(p.numel() for p in parameters)]
    backend.grad(loss, model, batch)
    backend.hvp(loss, model, batch, v)
    backend.linearize(loss, model, batch)(v)
    backend.per_example_grads(loss, model, batch)
    backend.example_products(loss, model, batch, v)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert [{key: id(value) for key, value in vars(part).items()} for part in model.modules()] == attributes
