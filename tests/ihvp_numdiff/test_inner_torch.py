"""Differences over torch's gradient: an operation without a second derivative still has products."""

from __future__ import annotations

import numpy as np
import pytest

from ihvp.backend import GradientFunction
from ihvp.errors import ParameterError
from ihvp_numdiff import InPlaceWeights
from ihvp_numdiff._backend import NumdiffBackend

torch = pytest.importorskip("torch")


@pytest.fixture
def backend():
    from ihvp_torch import TorchBackend

    return NumdiffBackend(TorchBackend())


@pytest.fixture
def module():
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 4, generator=generator, dtype=torch.float64), torch.arange(8) % 3


def loss(model, batch):
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])


class OnceDifferentiable(torch.autograd.Function):
    """``exp`` whose backward pass cannot be differentiated."""

    @staticmethod
    def forward(ctx, w):
        ctx.save_for_backward(w.exp())
        return w.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0]


def test_product_over_a_module_equals_that_of_torch(backend, module, batch):
    before = [p.detach().clone() for p in module.parameters()]
    v = torch.ones(backend.flatten(module).shape[0], 2, dtype=torch.float64)
    v[::3, 1] = -2
    product = backend.hvp(loss, module, batch, v)
    exact = backend.inner.hvp(loss, module, batch, v)
    assert isinstance(product, torch.Tensor)
    assert float(torch.linalg.norm(product - exact) / torch.linalg.norm(exact)) < 1e-7
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize("order", [2, 4])
def test_unlike_sizes_have_products_in_the_arrays_of_torch(backend, module, batch, order):
    # The first layer of a network in other units: its input is as much smaller as its weights are larger.
    inputs, targets = batch[0] * torch.tensor([1e-6, 1.0, 1e6, 1e3], dtype=torch.float64), batch[1]
    with torch.no_grad():
        module[0].weight /= torch.tensor([1e-6, 1.0, 1e6, 1e3], dtype=torch.float64)
    backend = NumdiffBackend(backend.inner, order=order)
    v = torch.ones(backend.flatten(module).shape[0], 2, dtype=torch.float64)
    v[::3, 1] = 0
    product = backend.hvp(loss, module, (inputs, targets), v)
    exact = backend.inner.hvp(loss, module, (inputs, targets), v)
    assert isinstance(product, torch.Tensor)
    error = torch.linalg.norm(product - exact, dim=0) / torch.linalg.norm(exact, dim=0)
    assert float(error.max()) < 1e-5


def test_operation_without_a_second_derivative_has_products(backend):
    w = [torch.tensor([0.1, 0.2], dtype=torch.float64)]
    product = backend.hvp(
        lambda w, batch: OnceDifferentiable.apply(w[0]).sum(), w, None, torch.ones(2, dtype=torch.float64)
    )
    np.testing.assert_allclose(product.numpy(), np.exp([0.1, 0.2]), rtol=1e-8)


@pytest.mark.parametrize("form", [tuple, list, lambda g: torch.cat([part.ravel() for part in g])])
def test_gradient_by_hand_over_a_list_of_tensors(backend, form):
    w = [torch.tensor([0.1, 0.2], dtype=torch.float64), torch.tensor([[0.3]], dtype=torch.float64)]
    gradient = GradientFunction(lambda w, batch: form([part.exp() for part in w]))
    v = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    product = backend.hvp(gradient, w, None, v)
    assert isinstance(product, torch.Tensor)
    np.testing.assert_allclose(product.numpy(), np.exp([0.1, 0.2, 0.3]) * [1, 2, 3], rtol=1e-8)


def test_gradient_by_hand_that_accumulates_in_place_is_differenced_correctly(backend):
    w, buffer = torch.tensor([0.1, 0.2], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    gradient = GradientFunction(lambda w, batch: torch.exp(w, out=buffer))
    product = backend.hvp(gradient, w, None, torch.ones(2, dtype=torch.float64))
    np.testing.assert_allclose(product.numpy(), np.exp([0.1, 0.2]), rtol=1e-8)


def gradient_of_module(module):
    def gradient(params, batch):
        return [g.numpy() for g in torch.autograd.grad(loss(module, batch), list(module.parameters()))]

    return GradientFunction(gradient)


def test_gradient_by_hand_over_a_module_is_refused_with_a_way_out(backend, module, batch):
    v = torch.ones(backend.flatten(module).shape[0], dtype=torch.float64)
    with pytest.raises(ParameterError, match="InPlaceWeights"):
        backend.hvp(gradient_of_module(module), module, batch, v)


def test_module_as_weights_in_place_has_the_same_products(backend, module, batch):
    def write(values):
        with torch.no_grad():
            for parameter, value in zip(module.parameters(), values, strict=True):
                parameter.copy_(torch.as_tensor(value))

    weights = InPlaceWeights(lambda: [p.detach().numpy() for p in module.parameters()], write)
    before = [p.detach().clone() for p in module.parameters()]
    v = np.linspace(-1, 1, backend.flatten(module).shape[0])
    product = NumdiffBackend().hvp(gradient_of_module(module), weights, batch, v)
    exact = backend.inner.hvp(loss, module, batch, torch.as_tensor(v)).numpy()
    assert np.linalg.norm(product - exact) < 1e-7 * np.linalg.norm(exact)
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
