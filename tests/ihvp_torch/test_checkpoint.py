"""Checkpoints of both kinds: ``torch.autograd.grad`` itself sees no parameter inside a re-entrant one."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import checkpoint as torch_checkpoint
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from ihvp_torch import _program
from ihvp_torch._backend import TorchBackend
from ihvp_torch._checkpoint import recorded_checkpoints


def first_layer(model, x):
    """Nothing that goes in requires a gradient, so that nothing that comes out does."""
    return model.out(checkpoint(lambda t: torch.tanh(model.hidden(t)), x, use_reentrant=True))


def last_layer(model, x):
    return checkpoint(model.out, torch.tanh(model.hidden(x)), use_reentrant=True)


def both_layers(model, x):
    x = x if x.requires_grad else x.clone().requires_grad_()
    return checkpoint(
        model.out,
        checkpoint(lambda t: torch.tanh(model.hidden(t)), x, use_reentrant=True),
        use_reentrant=True,
    )


def nested(model, x):
    inner = lambda t: checkpoint(model.hidden, t, use_reentrant=True)  # noqa: E731
    return model.out(checkpoint(lambda t: torch.tanh(inner(t)), x, use_reentrant=True))


def in_segments(model, x):
    return checkpoint_sequential([model.hidden, torch.tanh, model.out], 3, x, use_reentrant=True)


def with_noise(model, x):
    torch.manual_seed(0)
    drop = lambda t: nn.functional.dropout(torch.tanh(model.hidden(t)), 0.3)  # noqa: E731
    return model.out(checkpoint(drop, x, use_reentrant=True))


def with_noise_recorded(model, x):
    torch.manual_seed(0)
    return model.out(nn.functional.dropout(torch.tanh(model.hidden(x)), 0.3))


PREDICTIONS = [first_layer, last_layer, both_layers, nested, in_segments, with_noise]


def loss_of(predict):
    return lambda model, batch: (predict(model, batch[0]) - batch[1]).square().mean()


@pytest.fixture
def batch():
    random = torch.Generator().manual_seed(1)
    return tuple(torch.randn(5, n, generator=random, dtype=torch.float64) for n in (3, 2))


@pytest.fixture
def oracle(differences, net, batch):
    def of(predict):
        plain = with_noise_recorded if predict is with_noise else type(net).forward
        return differences(loss_of(plain), net, batch)

    return of


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("predict", PREDICTIONS)
def test_parameters_inside_a_reentrant_checkpoint_count(backend, net, batch, oracle, predict):
    plain, loss = oracle(predict), loss_of(predict)
    hessian, v = plain.hessian, torch.linspace(-1, 1, 26, dtype=torch.float64)
    close(backend.grad(loss, net, batch), plain.gradient())
    close(backend.hvp(loss, net, batch, v), hessian @ v.numpy())
    close(backend.hvp(loss, net, batch, torch.eye(26, dtype=torch.float64)), hessian)
    product = backend.linearize(loss, net, batch)
    close(product(v), hessian @ v.numpy())
    close(product(v), hessian @ v.numpy())


@pytest.mark.parametrize("predict", PREDICTIONS[:-1])
def test_rows_and_other_products_know_them_too(backend, net, batch, oracle, predict):
    plain, loss = oracle(predict), loss_of(predict)
    v = torch.linspace(-1, 1, 26, dtype=torch.float64)
    close(backend.per_example_grads(loss, net, batch), plain.rows)
    close(backend.example_products(loss, net, batch, v), plain.rows @ v.numpy())
    close(backend.input_derivatives(loss, net, batch, v)[0], plain.by_inputs(v.numpy()))
    squared = lambda outputs, data: (outputs - data[1]).square().mean()  # noqa: E731
    close(
        backend.gnvp(lambda m, b: predict(m, b[0]), squared, net, batch, v),
        backend.gnvp(lambda m, b: m(b[0]), squared, net, batch, v).numpy(),
    )
    assert backend.value(loss, net, batch) == loss_of(type(net).forward)(net, batch)


def test_compiled_products_know_them_too(net, batch, oracle, monkeypatch):
    monkeypatch.setattr(_program, "_lower", lambda module, inputs: module)  # traced only, which is quick
    v = torch.linspace(-1, 1, 26, dtype=torch.float64)
    product = TorchBackend(compile=True).hvp(loss_of(first_layer), net, batch, v)
    close(product, oracle(first_layer).hessian @ v.numpy())


def test_torch_is_as_it_was_for_everyone_else(backend, net, batch):
    original, seen = torch_checkpoint.CheckpointFunction, {}

    def elsewhere():
        x = torch.ones(1, 3, dtype=torch.float64, requires_grad=True)
        seen["function"] = checkpoint(net.hidden, x, use_reentrant=True).grad_fn.name()

    def predict(model, x):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return first_layer(model, x)

    backend.grad(loss_of(predict), net, batch)
    assert seen == {"function": "CheckpointFunctionBackward"}
    assert torch_checkpoint.CheckpointFunction is original


def test_torch_is_as_it_was_after_a_failure(backend, net, batch):
    original = torch_checkpoint.CheckpointFunction
    with pytest.raises(ZeroDivisionError):
        backend.grad(lambda m, b: 1 / 0, net, batch)
    with recorded_checkpoints():
        assert torch_checkpoint.CheckpointFunction is not original
        with recorded_checkpoints():
            pass
        assert torch_checkpoint.CheckpointFunction is not original
    assert torch_checkpoint.CheckpointFunction is original
