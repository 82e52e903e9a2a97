from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ihvp.errors import UnsupportedOperation


class Once(torch.autograd.Function):
    """x³ whose backward pass cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class OnceWithForwardMode(Once):
    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * tangent


class ThroughNumpy(torch.autograd.Function):
    """x³ whose backward pass leaves torch without saying so."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(3 * x.detach().numpy() ** 2 * g.detach().numpy())


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 12, dtype=torch.float64)

    def forward(self, x):
        q, k, v = self.project(x).unsqueeze(1).chunk(3, dim=-1)
        return nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1)


def by_hand(model, x):
    q, k, v = model.project(x).chunk(3, dim=-1)
    return torch.softmax(q @ k.mT / 2, dim=-1) @ v


def fused_loss(model, x):
    return model(x).square().mean()


def plain_loss(model, x):
    return by_hand(model, x).square().mean()


@pytest.fixture
def x():
    return torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def attention():
    torch.manual_seed(0)
    return Attention()


def test_fused_attention_has_no_second_derivative_of_its_own(attention, x):
    weight = attention.project.weight
    (gradient,) = torch.autograd.grad(fused_loss(attention, x), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="flash_attention_for_cpu_backward is not implemented"):
        torch.autograd.grad(gradient.sum(), weight)


def test_fused_attention_falls_back_to_its_plain_form(backend, attention, x):
    v = torch.randn(60, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = backend.hvp(plain_loss, attention, x, v)
    torch.testing.assert_close(backend.hvp(fused_loss, attention, x, v), expected)
    product = backend.linearize(fused_loss, attention, x)
    torch.testing.assert_close(product(v), expected)
    torch.testing.assert_close(product(torch.stack([v, 2 * v], dim=1))[:, 1], 2 * expected)


def test_fused_attention_has_gauss_newton_and_per_example_gradients(backend, attention, x):
    v = torch.randn(60, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loss = lambda out, _: out.square().mean()  # noqa: E731
    fused = backend.gnvp(lambda m, data: m(data), loss, attention, x, v)
    torch.testing.assert_close(fused, backend.gnvp(by_hand, loss, attention, x, v))
    torch.testing.assert_close(
        backend.per_example_grads(fused_loss, attention, x),
        backend.per_example_grads(plain_loss, attention, x),
    )


def test_switches_are_as_they_were_after_a_fallback(backend, attention, x):
    def state():
        return (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
            torch.backends.cuda.cudnn_sdp_enabled(),
            torch.backends.cudnn.enabled,
        )

    before = state()
    backend.hvp(fused_loss, attention, x, torch.ones(60, dtype=torch.float64))
    assert state() == before


def test_way_that_worked_is_tried_first_the_next_time(backend, attention, x):
    calls = []

    def loss(model, data):
        calls.append(None)
        return fused_loss(model, data)

    v = torch.ones(60, dtype=torch.float64)
    backend.hvp(loss, attention, x, v)
    assert len(calls) == 3
    backend.hvp(loss, attention, x, v)
    assert len(calls) == 4


def test_way_is_remembered_for_a_method(backend, attention, x):
    class Task:
        calls = 0

        def loss(self, model, data):
            self.calls += 1
            return fused_loss(model, data)

    task = Task()
    for _ in range(2):
        backend.hvp(task.loss, attention, x, torch.ones(60, dtype=torch.float64))
    assert task.calls == 4


def test_loss_that_cannot_be_remembered_works(backend):
    class Loss:
        __hash__ = None

        def __call__(self, p, _):
            return (p[0] ** 3).sum()

    assert backend.hvp(Loss(), [torch.tensor([2.0])], None, torch.ones(1)).item() == 12.0


@pytest.mark.parametrize("function", [Once, ThroughNumpy])
def test_operation_without_second_derivative_is_named(backend, function):
    with pytest.raises(UnsupportedOperation, match=rf"differentiate {function.__name__} twice") as caught:
        backend.hvp(lambda p, _: function.apply(p[0]).sum(), [torch.ones(2)], None, torch.ones(2))
    assert caught.value.operation == function.__name__
    assert isinstance(caught.value.__cause__, NotImplementedError)


def test_operation_without_second_derivative_is_named_beside_others(backend):
    # torch itself would drop the cube's share and answer 2.
    loss = lambda p, _: (Once.apply(p[0]) + p[0] ** 2).sum()  # noqa: E731
    with pytest.raises(UnsupportedOperation, match="differentiate Once twice"):
        backend.hvp(loss, [torch.ones(2)], None, torch.ones(2))


def test_operation_with_forward_mode_is_differentiated_by_it(backend):
    w = torch.tensor([1.0, 2.0])
    loss = lambda p, _: (OnceWithForwardMode.apply(p[0]) + p[0] ** 2).sum()  # noqa: E731
    assert backend.hvp(loss, [w], None, torch.ones(2)).tolist() == [8.0, 14.0]
    product = backend.linearize(loss, [w], None)
    assert product(torch.eye(2)).tolist() == [[8.0, 0.0], [0.0, 14.0]]
    with torch.no_grad():
        w += 1.0
    assert product(torch.ones(2)).tolist() == [14.0, 20.0]


def test_gauss_newton_uses_forward_mode_where_it_must(backend):
    predict = lambda p, _: OnceWithForwardMode.apply(p[0])  # noqa: E731
    product = backend.gnvp(
        predict, lambda out, _: out.square().sum(), [torch.tensor([1.0, 2.0])], None, torch.ones(2)
    )
    np.testing.assert_allclose(product, [2 * 3**2, 2 * 12**2])


@pytest.mark.parametrize("function", [Once, ThroughNumpy])
def test_gauss_newton_names_an_operation_it_cannot_differentiate(backend, function):
    with pytest.raises(UnsupportedOperation, match=f"differentiate {function.__name__} twice"):
        backend.gnvp(
            lambda p, _: function.apply(p[0]),
            lambda out, _: out.square().sum(),
            [torch.ones(2)],
            None,
            torch.ones(2),
        )


def test_operation_with_one_derivative_keeps_its_gradient(backend):
    loss = lambda p, _: Once.apply(p[0]).sum()  # noqa: E731
    assert backend.grad(loss, [torch.tensor([1.0, 2.0])], None).tolist() == [3.0, 12.0]


def test_parameters_stay_after_an_unsupported_operation(backend, net, batch):
    before = [p.detach().clone() for p in net.parameters()]
    parameters = list(net.parameters())
    with pytest.raises(UnsupportedOperation):
        backend.hvp(
            lambda m, data: Once.apply(m(data[0])).mean(), net, batch, torch.ones(26, dtype=torch.float64)
        )
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    torch.testing.assert_close([p.detach() for p in net.parameters()], before, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_function_falls_back_to_eager(backend):
    compiled = torch.compile(lambda w: (w**3).sum(), backend="aot_eager")
    product = backend.hvp(lambda p, _: compiled(p[0]), [torch.tensor([1.0, 2.0])], None, torch.ones(2))
    assert product.tolist() == [6.0, 12.0]


def test_forward_mode_keeps_nothing(backend):
    product = backend.linearize(lambda p, _: OnceWithForwardMode.apply(p[0]).sum(), [torch.ones(2)], None)
    assert product(torch.ones(2)).tolist() == [6.0, 6.0]
    assert product.nbytes == 0
