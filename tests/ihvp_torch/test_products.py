from __future__ import annotations

from collections import UserDict

import numpy as np
import pytest
import torch
from torch import nn

from ihvp.errors import LossIndependentOfParameters, LossNotScalar


def test_toy_problem_of_the_seed(backend, toy, toy_loss, toy_gradient, toy_hessian):
    v = torch.ones(2, dtype=torch.float64)
    np.testing.assert_allclose(backend.grad(toy_loss, toy, None), toy_gradient, rtol=1e-14)
    np.testing.assert_allclose(backend.hvp(toy_loss, toy, None, v), [20 / 9, 28 / 3], rtol=1e-14)
    block = backend.hvp(toy_loss, toy, None, torch.eye(2, dtype=torch.float64))
    np.testing.assert_allclose(block, toy_hessian, rtol=1e-14)


def test_gradient_and_product_agree_with_numpy(backend, net, square_loss, batch, vector, gradient, hessian):
    np.testing.assert_allclose(backend.grad(square_loss, net, batch), gradient, rtol=1e-12)
    product = backend.hvp(square_loss, net, batch, vector)
    np.testing.assert_allclose(product, hessian @ vector.numpy(), rtol=1e-8)


def test_module_and_dict_give_the_same_answers(backend, net, square_loss, batch, vector):
    def functional(state, data):
        h = torch.tanh(data[0] @ state["hidden.weight"].T + state["hidden.bias"])
        return (h @ state["out.weight"].T + state["out.bias"] - data[1]).square().mean()

    state = {name: p.detach() for name, p in net.named_parameters()}
    torch.testing.assert_close(backend.grad(functional, state, batch), backend.grad(square_loss, net, batch))
    torch.testing.assert_close(
        backend.hvp(functional, state, batch, vector), backend.hvp(square_loss, net, batch, vector)
    )


@pytest.mark.parametrize("order", ["row", "column"])
def test_columns_of_a_block_are_products_of_its_columns(backend, net, square_loss, batch, order):
    block = torch.randn(26, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    block = block if order == "row" else block.T.contiguous().T
    result = backend.hvp(square_loss, net, batch, block)
    assert result.shape == (26, 3)
    assert result.T.is_contiguous()
    for i in range(3):
        torch.testing.assert_close(result[:, i], backend.hvp(square_loss, net, batch, block[:, i]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_product_is_right_to_the_precision_of_its_dtype(backend, net, square_loss, batch, hessian, dtype):
    net.to(dtype)
    data = tuple(torch.from_numpy(array).to(dtype) for array in batch)
    v = torch.ones(26, dtype=torch.promote_types(dtype, torch.float32))
    expected = hessian.sum(axis=1)
    for product in (
        backend.hvp(square_loss, net, data, v),
        backend.linearize(square_loss, net, data)(v),
    ):
        assert product.dtype == v.dtype
        error = np.linalg.norm(product.double().numpy() - expected) / np.linalg.norm(expected)
        assert error < max(20 * torch.finfo(dtype).eps, 1e-9)


def test_grad_of_the_user_is_not_touched(backend, net, square_loss, batch, vector):
    net.hidden.weight.grad = torch.full_like(net.hidden.weight, 7.0)
    backend.grad(square_loss, net, batch)
    backend.hvp(square_loss, net, batch, vector)
    assert (net.hidden.weight.grad == 7.0).all()
    assert net.out.weight.grad is None


def test_parameter_the_loss_does_not_use_has_zeros(backend):
    params = {"used": torch.tensor([3.0]), "unused": torch.tensor([5.0])}
    loss = lambda p, _: (p["used"] ** 3).sum()  # noqa: E731
    assert backend.grad(loss, params, None).tolist() == [27.0, 0.0]
    assert backend.hvp(loss, params, None, torch.ones(2)).tolist() == [18.0, 0.0]


def test_linear_parameter_has_zero_curvature(backend):
    params = {"linear": torch.tensor([3.0]), "cubic": torch.tensor([5.0])}
    partly = lambda p, _: (p["linear"] + p["cubic"] ** 3).sum()  # noqa: E731
    wholly = lambda p, _: (2 * p["linear"] + p["cubic"]).sum()  # noqa: E731
    assert backend.hvp(partly, params, None, torch.ones(2)).tolist() == [0.0, 30.0]
    assert backend.hvp(wholly, params, None, torch.ones(2)).tolist() == [0.0, 0.0]


def test_step_function_has_zero_curvature(backend):
    loss = lambda p, _: (p[0].sign() + p[0] ** 2).sum() + p[1].round()  # noqa: E731
    assert backend.hvp(loss, [torch.tensor(2.0), torch.tensor(1.2)], None, torch.ones(2)).tolist() == [2, 0]


def test_sparse_gradients_of_an_embedding_are_joined(backend):
    embedding = nn.Embedding(3, 2, sparse=True, dtype=torch.float64)
    loss = lambda m, index: m(index).pow(3).sum()  # noqa: E731
    index = torch.tensor([1, 1])
    w = embedding.weight.detach().numpy()
    used = np.array([[0.0], [2.0], [0.0]])
    np.testing.assert_allclose(backend.grad(loss, embedding, index), (used * 3 * w**2).ravel())
    v = torch.ones(6, dtype=torch.float64)
    np.testing.assert_allclose(backend.hvp(loss, embedding, index, v), (used * 6 * w).ravel())


class Encoding(UserDict):
    """Entries as attributes too, as Hugging Face's BatchEncoding has them."""

    def __getattr__(self, name):
        return self.data[name]


@pytest.mark.parametrize("container", [dict, Encoding])
def test_batch_may_be_a_mapping(backend, net, square_loss, batch, vector, container):
    data = container({"x": batch[0], "y": torch.from_numpy(batch[1]), "name": "digits"})

    def loss(model, entries):
        assert type(entries) is container
        assert entries["name"] == "digits"
        x = entries.x if container is Encoding else entries["x"]
        return square_loss(model, (x, entries["y"]))

    assert backend.hvp(loss, net, data, vector).equal(backend.hvp(square_loss, net, batch, vector))
    assert isinstance(data["x"], np.ndarray)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0)[::-1],
        np.arange(12.0)[::2],
        np.arange(6.0).astype(">f8"),
        np.broadcast_to(np.float64(2.0), (6,)),
        np.array(3.0),
        np.arange(6, dtype=np.int32),
    ],
    ids=["reversed", "strided", "big-endian", "read-only", "scalar", "integer"],
)
def test_numpy_arrays_of_any_layout_reach_the_loss(backend, array):
    seen = []

    def loss(p, data):
        seen.append(data[0])
        return (p[0] * data[0]).sum()

    gradient = backend.grad(loss, [torch.tensor(1.0, dtype=torch.float64)], [array])
    assert seen[0].dtype == torch.from_numpy(np.zeros(0, array.dtype.newbyteorder("="))).dtype
    assert gradient.item() == array.sum()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_caller_may_have_switched_gradients_off(backend, net, square_loss, batch, vector, mode):
    expected = backend.hvp(square_loss, net, batch, vector)
    with mode():
        data = tuple(torch.from_numpy(array.copy()) for array in batch)
        v = vector.clone()
        assert backend.hvp(square_loss, net, data, v).equal(expected)
        assert backend.linearize(square_loss, net, data)(v).equal(expected)
        assert backend.per_example_grads(square_loss, net, data).shape == (5, 26)
        state = backend.unflatten(backend.flatten(net), net)
        assert backend.hvp(square_loss, state, data, v).equal(expected)
        assert not torch.is_grad_enabled()


def test_parameters_made_in_inference_mode_are_differentiated(backend):
    with torch.inference_mode():
        w = torch.tensor([2.0])
    loss = lambda p, _: (p[0] ** 3).sum()  # noqa: E731
    product = backend.linearize(loss, [w], None)
    assert product(torch.ones(1)).item() == 12.0
    with torch.inference_mode():
        w.add_(1.0)
    assert product(torch.ones(1)).item() == 18.0


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2, dtype=torch.float64)
        self.norm = nn.BatchNorm1d(2, dtype=torch.float64)

    def forward(self, x):
        return self.norm(self.linear(x)) ** 2


def everything(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_buffers_of_batch_norm_in_training_mode_stay(backend, square_loss, batch):
    module = Normalised()
    before = everything(module)
    v = torch.ones(12, dtype=torch.float64)
    backend.grad(square_loss, module, batch)
    backend.hvp(square_loss, module, batch, v)
    backend.linearize(square_loss, module, batch)(v)
    backend.gnvp(
        lambda m, data: m(data[0]), lambda out, data: (out - data[1]).pow(2).mean(), module, batch, v
    )
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)


def test_nothing_changes_when_the_loss_fails(backend, batch):
    module = Normalised()
    before = everything(module)
    weight = module.linear.weight

    def loss(model, data):
        model.norm.running_mean.add_(1.0)
        raise KeyError("mine")

    for call in (
        lambda: backend.grad(loss, module, batch),
        lambda: backend.hvp(loss, module, batch, torch.ones(12, dtype=torch.float64)),
        lambda: backend.linearize(loss, module, batch),
        lambda: backend.per_example_grads(loss, module, batch),
    ):
        with pytest.raises(KeyError, match="mine"):
            call()
    assert module.linear.weight is weight
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)


def test_error_of_the_loss_passes_unchanged(backend):
    mine = RuntimeError("shapes do not fit")

    def loss(p, _):
        raise mine

    with pytest.raises(RuntimeError) as caught:
        backend.hvp(loss, [torch.ones(1)], None, torch.ones(1))
    assert caught.value is mine


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda p: p, r"Tensor of shape \(2,\)"),
        (lambda p: None, "returned None"),
        (lambda p: p.sum().to(torch.complex64), "torch.complex64"),
        (lambda p: p.sum().long(), "torch.int64"),
        (lambda p: (p.sum(), p), "returned tuple"),
    ],
    ids=["vector", "none", "complex", "integer", "tuple"],
)
def test_loss_that_is_not_a_real_scalar_is_refused(backend, value, message):
    def loss(p, _):
        return value(p[0])

    with pytest.raises(LossNotScalar, match=message):
        backend.grad(loss, [torch.ones(2)], None)
    with pytest.raises(LossNotScalar, match=message):
        backend.hvp(loss, [torch.ones(2)], None, torch.ones(2))


@pytest.mark.parametrize(
    "value",
    [
        lambda p: p.detach().sum(),
        lambda p: p.sum().item(),
        lambda p: torch.ones(2, requires_grad=True).sum(),
    ],
    ids=["detached", "number", "other tensor"],
)
def test_loss_independent_of_the_parameters_is_refused(backend, value):
    with pytest.raises(LossIndependentOfParameters):
        backend.hvp(lambda p, _: value(p[0]), [torch.ones(2)], None, torch.ones(2))
    with pytest.raises(LossIndependentOfParameters):
        backend.grad(lambda p, _: value(p[0]), [torch.ones(2)], None)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_checkpointed_module_has_the_same_products(backend, net, square_loss, batch, vector, shift):
    from torch.utils.checkpoint import checkpoint

    def loss(model, data):
        return (checkpoint(model, data[0], use_reentrant=False) - data[1]).square().mean()

    params = backend.unflatten(backend.flatten(net) + shift, net)
    expected = backend.hvp(square_loss, params, batch, vector)
    torch.testing.assert_close(backend.hvp(loss, params, batch, vector), expected)
    torch.testing.assert_close(backend.grad(loss, params, batch), backend.grad(square_loss, params, batch))
