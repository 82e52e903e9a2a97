from __future__ import annotations

from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import ihvp
from ihvp.errors import ParameterError, WrongShape

Pair = namedtuple("Pair", "weight bias")


@pytest.mark.parametrize(
    ("params", "order"),
    [
        ({"b": torch.tensor([1.0, 2.0]), "a": torch.tensor([[3.0], [4.0]])}, [1, 2, 3, 4]),
        ([torch.tensor(1.0), torch.tensor([2.0])], [1, 2]),
        ((torch.tensor([1.0]), {"x": torch.tensor(2.0), "y": [torch.tensor(3.0)]}), [1, 2, 3]),
        (Pair(torch.tensor([1.0]), torch.tensor([2.0])), [1, 2]),
        (OrderedDict(z=torch.tensor([1.0]), a=torch.tensor([2.0])), [1, 2]),
        (torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T, [1, 3, 2, 4]),
    ],
    ids=["dict", "list", "nested", "namedtuple", "ordered dict", "transposed tensor"],
)
def test_unflatten_inverts_flatten(backend, params, order):
    vector = backend.flatten(params)
    np.testing.assert_array_equal(vector, np.array(order, dtype=np.float32))
    again = backend.unflatten(vector, params)
    assert type(again) is type(params)
    torch.testing.assert_close(again, params, rtol=0, atol=0)


def test_flatten_copies(backend):
    w = torch.zeros(3)
    backend.flatten([w])[0] = 1.0
    assert w[0] == 0.0


def test_module_is_flattened_in_the_order_of_named_parameters(backend, net):
    expected = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    torch.testing.assert_close(backend.flatten(net), expected, rtol=0, atol=0)


def test_named_parameters_and_state_dict_flatten_like_the_module(backend, net):
    for state in (dict(net.named_parameters()), net.state_dict()):
        torch.testing.assert_close(backend.flatten(state), backend.flatten(net), rtol=0, atol=0)


def test_state_of_a_module_loads_into_it(backend, net):
    state = backend.unflatten(torch.arange(26.0, dtype=torch.float64), net)
    net.load_state_dict(state)
    np.testing.assert_array_equal(backend.flatten(net), np.arange(26.0))


def test_state_of_a_module_is_accepted_as_its_parameters(backend, net, square_loss, batch, vector):
    state = backend.unflatten(backend.flatten(net) + vector, net)
    shifted = type(net)()
    shifted.load_state_dict(state)
    assert backend.grad(square_loss, state, batch).equal(backend.grad(square_loss, shifted, batch))
    assert backend.hvp(square_loss, state, batch, vector).equal(
        backend.hvp(square_loss, shifted, batch, vector)
    )
    assert backend.flatten(backend.unflatten(vector, state)).equal(vector)


def test_frozen_parameters_are_left_out(backend, net, square_loss, batch, vector, hessian):
    net.hidden.requires_grad_(False)
    assert backend.flatten(net).shape == (10,)
    assert list(backend.unflatten(torch.zeros(10), net)) == ["out.weight", "out.bias"]
    product = backend.hvp(square_loss, net, batch, vector[16:])
    np.testing.assert_allclose(product, hessian[16:, 16:] @ vector[16:].numpy(), rtol=1e-8)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(2, 2, bias=False, dtype=torch.float64)
        self.two = nn.Linear(2, 2, bias=False, dtype=torch.float64)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(self.one(x))


def test_tied_weights_count_once_and_share_their_derivative(backend):
    module = Tied()
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    weight = module.one.weight.detach().clone()
    v = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    assert backend.flatten(module).shape == (4,)
    product = backend.hvp(lambda m, _: m(x).sum(), module, None, v)
    # 1ᵀ W² xᵀ has the gradient 1 (W xᵀ)ᵀ + Wᵀ 1 x, which is linear in W.
    ones, V = torch.ones(2, 1, dtype=torch.float64), v.reshape(2, 2)
    expected = ones @ (V @ x.T).T + V.T @ ones @ x
    torch.testing.assert_close(product.reshape(2, 2), expected)
    assert module.two.weight is module.one.weight
    torch.testing.assert_close(module.one.weight.detach(), weight, rtol=0, atol=0)


def test_mixed_dtypes_are_promoted_and_cast_back(backend):
    params = {"a": torch.tensor([0.1], dtype=torch.float32), "b": torch.tensor([0.2], dtype=torch.float64)}
    vector = backend.flatten(params)
    assert vector.dtype == torch.float64
    again = backend.unflatten(vector, params)
    assert [again["a"].dtype, again["b"].dtype] == [torch.float32, torch.float64]
    assert again["a"].equal(params["a"])

    def loss(p, _):
        return (p["a"].double() * p["b"]).sum() ** 2

    gradient = backend.grad(loss, params, None)
    product = backend.hvp(loss, params, None, torch.tensor([1.0, 1.0], dtype=torch.float64))
    assert gradient.dtype == product.dtype == torch.float64
    np.testing.assert_allclose(gradient, [2 * 0.1 * 0.04, 2 * 0.01 * 0.2], rtol=1e-6)
    np.testing.assert_allclose(product, [2 * 0.04 + 4 * 0.02, 4 * 0.02 + 2 * 0.01], rtol=1e-6)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": torch.ones(2), "n": torch.ones(2, dtype=torch.int64)}, r"n \(torch.int64\)"),
        ([torch.ones(2, dtype=torch.complex64)], r"0 \(torch.complex64\)"),
        ({"w": np.ones(2)}, r"w \(numpy.ndarray of shape \(2,\)\)"),
        ((p for p in [torch.ones(2)]), r"params \(generator\)"),
        (None, r"params \(None\)"),
        ({}, "dict holds no parameters"),
        (nn.ReLU(), "holds no parameters"),
        (nn.Linear(2, 1).requires_grad_(False), "requires_grad"),
        (nn.BatchNorm1d(2).state_dict(), r"num_batches_tracked \(torch.int64\)"),
        ([torch.ones(1), torch.ones(1, device="meta")], r"0 \(cpu\), 1 \(meta\)"),
    ],
    ids=[
        "integer",
        "complex",
        "numpy",
        "iterator",
        "none",
        "empty",
        "no parameters",
        "frozen",
        "state dict",
        "devices",
    ],
)
def test_unusable_parameters_are_named(backend, params, message):
    with pytest.raises(ParameterError, match=message):
        backend.flatten(params)


@pytest.mark.parametrize("shape", [(3,), (2, 1), ()])
def test_vector_of_another_shape_is_refused(backend, shape):
    with pytest.raises(WrongShape):
        backend.unflatten(torch.zeros(shape), [torch.zeros(2)])


@pytest.mark.parametrize("solver", [ihvp.LiSSA(batch_size=4, recursion_depth=30, rtol=None), ihvp.CG()])
def test_parameters_frozen_between_two_solves_are_named(solver):
    torch.manual_seed(0)
    net, x, y = nn.Linear(4, 3).double(), torch.randn(12, 4).double(), torch.randint(3, (12,))
    objective = ihvp.Objective(lambda net, batch: cross_entropy(net(batch[0]), batch[1]), net, (x, y))
    inverse, v = ihvp.inverse(ihvp.Hessian(objective), 0.5, solver), torch.randn(15).double()
    _ = inverse @ v
    net.bias.requires_grad_(False)
    with torch.no_grad():
        net.weight *= 1.1
    with pytest.raises(ParameterError, match="12 numbers now; expected the 15"):
        _ = inverse @ v
