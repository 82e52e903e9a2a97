"""Products with the gradients of single examples, in forward mode and where torch has none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ihvp.errors import DataError, LossNotScalar, UnequalBatches


class Cubed(torch.autograd.Function):
    """Has neither a forward derivative nor a batching rule."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


@pytest.fixture
def block(vector):
    return torch.stack([vector * (i + 1) + i for i in range(20)], dim=1)


@pytest.mark.parametrize("columns", [1, 3, 20])
def test_they_are_products_of_the_gradients(backend, net, square_loss, batch, block, columns):
    rows = backend.per_example_grads(square_loss, net, batch)
    products = backend.example_products(square_loss, net, batch, block[:, :columns])
    torch.testing.assert_close(products, rows @ block[:, :columns], rtol=1e-12, atol=1e-12)


def test_a_vector_gives_one_number_an_example(backend, net, square_loss, batch, vector):
    rows = backend.per_example_grads(square_loss, net, batch)
    products = backend.example_products(square_loss, net, batch, vector)
    torch.testing.assert_close(products, rows @ vector, rtol=1e-12, atol=1e-12)


def test_data_and_vectors_that_require_gradients_give_constants(backend, net, square_loss, batch, block):
    expected = backend.example_products(square_loss, net, batch, block)
    data = (
        torch.from_numpy(batch[0]).requires_grad_(),
        torch.from_numpy(batch[1]) + torch.ones(1).requires_grad_() * 0,
    )
    products = backend.example_products(square_loss, net, data, block.clone().requires_grad_())
    assert not products.requires_grad
    torch.testing.assert_close(products, expected)
    assert data[0].grad is None


def test_gradients_are_not_formed(backend, net, square_loss, batch, vector, monkeypatch):
    monkeypatch.setattr("ihvp_torch._example_products.per_example_gradients", None)
    assert backend.example_products(square_loss, net, batch, vector).shape == (5,)


@pytest.mark.parametrize(
    "part",
    [
        Cubed.apply,
        lambda h: h * 2 if h.sum().item() > 0 else h,
        lambda h: h.masked_select(h > 0),
    ],
    ids=["custom function", "branch on a value", "shape that depends on values"],
)
def test_what_forward_mode_cannot_do_is_done_by_gradients(backend, net, batch, block, part):
    def loss(model, data):
        return part(model(data[0])).sum()

    rows = backend.per_example_grads(loss, net, batch)
    torch.testing.assert_close(backend.example_products(loss, net, batch, block), rows @ block)


def test_parameters_that_the_loss_ignores_contribute_nothing(backend, batch):
    params = {"used": torch.ones(3, dtype=torch.float64), "ignored": torch.ones(2, dtype=torch.float64)}
    products = backend.example_products(
        lambda p, d: (d[0] @ p["used"]).mean(), params, batch, torch.ones(5, dtype=torch.float64)
    )
    np.testing.assert_allclose(products, batch[0].sum(axis=1), rtol=1e-14)


def test_tiles_of_examples_are_joined(backend, net, square_loss, batch, block, monkeypatch):
    whole = backend.example_products(square_loss, net, batch, block)
    monkeypatch.setattr("ihvp_torch._example_products._PAIRS", 32)
    torch.testing.assert_close(backend.example_products(square_loss, net, batch, block), whole)


def test_buffers_stay_as_they_are(backend, square_loss, batch):
    module = nn.Sequential(nn.Linear(3, 2, dtype=torch.float64), nn.BatchNorm1d(2, dtype=torch.float64))
    module.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    v = torch.ones(12, dtype=torch.float64)
    rows = backend.per_example_grads(square_loss, module, batch)
    torch.testing.assert_close(backend.example_products(square_loss, module, batch, v), rows @ v)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    ("batch", "error"), [((np.ones((3, 2)), np.ones(4)), UnequalBatches), (None, DataError)]
)
def test_batches_without_a_number_of_examples_are_refused(backend, net, square_loss, vector, batch, error):
    with pytest.raises(error):
        backend.example_products(square_loss, net, batch, vector)


def test_a_loss_for_each_example_is_refused(backend, batch):
    v = torch.ones(3, dtype=torch.float64)
    with pytest.raises(LossNotScalar):
        backend.example_products(lambda p, d: d[0] @ p[0], [v.clone()], batch, v)
