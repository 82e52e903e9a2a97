from __future__ import annotations

import gc
import weakref
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import torch

from ihvp.errors import UnsupportedOperation


@contextmanager
def reference_counts_only():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Watched:
    """A loss that keeps a weak reference to a tensor of its graph."""

    def __init__(self, loss):
        self.loss, self.calls, self.seen = loss, 0, []

    def __call__(self, params, batch):
        self.calls += 1
        value = self.loss(params, batch)
        # The exponential's result is saved for the backward pass: it lives as long as the graph.
        kept = value.exp()
        self.seen.append(weakref.ref(kept))
        return kept.log() * 1.0

    @property
    def alive(self):
        return sum(ref() is not None for ref in self.seen)


def test_products_equal_those_without_linearisation(backend, net, square_loss, batch, vector):
    product = backend.linearize(square_loss, net, batch)
    for v in (vector, 2 * vector, torch.stack([vector, -vector, vector**2], dim=1)):
        torch.testing.assert_close(product(v), backend.hvp(square_loss, net, batch, v))


def test_loss_is_evaluated_once(backend, net, square_loss, batch, vector):
    loss = Watched(square_loss)
    product = backend.linearize(loss, net, batch)
    for _ in range(3):
        product(vector)
    product(torch.stack([vector, vector], dim=1))
    assert loss.calls == 1


def test_products_follow_a_change_in_place(backend, net, square_loss, batch, vector):
    product = backend.linearize(square_loss, net, batch)
    product(vector)
    with torch.no_grad():
        net.hidden.bias.add_(0.5)
    assert product(vector).equal(backend.hvp(square_loss, net, batch, vector))


def test_products_follow_an_optimiser(backend, net, square_loss, batch, vector):
    product = backend.linearize(square_loss, net, batch)
    before = product(vector)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    square_loss(net, [torch.from_numpy(array) for array in batch]).backward()
    optimizer.step()
    after = product(vector)
    assert not after.equal(before)
    assert after.equal(backend.hvp(square_loss, net, batch, vector))


@pytest.mark.parametrize("replace", ["parameter", "data"])
def test_products_follow_a_replacement(backend, net, square_loss, batch, vector, replace):
    product = backend.linearize(square_loss, net, batch)
    weight = net.out.weight.detach() * 2
    if replace == "parameter":
        net.out.weight = torch.nn.Parameter(weight)
    else:
        net.out.weight.data = weight
    assert product(vector).equal(backend.hvp(square_loss, net, batch, vector))


def test_products_follow_a_replaced_layer(backend, net, square_loss, batch, vector):
    product = backend.linearize(square_loss, net, batch)
    net.out = torch.nn.Linear(4, 2, dtype=torch.float64)
    assert product(vector).equal(backend.hvp(square_loss, net, batch, vector))


def test_products_follow_a_frozen_parameter(backend, net, square_loss, batch, vector):
    net.hidden.requires_grad_(False)
    product = backend.linearize(square_loss, net, batch)
    with torch.no_grad():
        net.hidden.weight.mul_(2.0)
    assert product(vector[16:]).equal(backend.hvp(square_loss, net, batch, vector[16:]))


def test_products_follow_the_entries_of_a_dict(backend):
    params = {"w": torch.tensor([2.0])}
    product = backend.linearize(lambda p, _: (p["w"] ** 3).sum(), params, None)
    params["w"] = torch.tensor([3.0])
    assert product(torch.ones(1)).item() == 18.0
    params["w"] += 1.0
    assert product(torch.ones(1)).item() == 24.0


def test_linearisation_is_not_repeated_without_a_change(backend, net, square_loss, batch, vector):
    loss = Watched(square_loss)
    product = backend.linearize(loss, net, batch)
    with torch.no_grad():
        net.out.bias.add_(1.0)
    product(vector)
    product(vector)
    assert loss.calls == 2


def test_graph_is_freed_when_the_map_is_dropped(backend, net, square_loss, batch, vector):
    loss = Watched(square_loss)
    with reference_counts_only():
        product = backend.linearize(loss, net, batch)
        product(vector)
        del product
        assert loss.alive == 0


def test_old_graph_is_freed_when_the_parameters_change(backend, net, square_loss, batch, vector):
    loss = Watched(square_loss)
    with reference_counts_only():
        product = backend.linearize(loss, net, batch)
        with torch.no_grad():
            net.out.bias.add_(1.0)
        product(vector)
        assert len(loss.seen) == 2
        assert loss.seen[0]() is None


@pytest.mark.parametrize("call", ["grad", "hvp", "hvp of a block", "per_example_grads"])
def test_nothing_of_a_call_stays(backend, net, square_loss, batch, vector, call):
    loss = Watched(square_loss)
    v = {"hvp": [vector], "hvp of a block": [vector.unsqueeze(1).expand(-1, 4)]}.get(call, [])
    with reference_counts_only():
        result = getattr(backend, call.split()[0])(loss, net, batch, *v)
        assert loss.alive == 0
        assert not result.requires_grad


def test_graphs_of_ways_that_failed_are_freed(backend):
    def attention(p, _):
        x = p[0].reshape(1, 1, 2, 2)
        return torch.nn.functional.scaled_dot_product_attention(x, x, x).square().sum()

    loss = Watched(attention)
    with reference_counts_only():
        product = backend.linearize(loss, [torch.arange(4.0)], None)
        product(torch.ones(4))
        assert loss.seen[0]() is None
        del product
        assert loss.alive == 0


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g


def test_graphs_are_freed_after_an_unsupported_operation(backend):
    loss = Watched(lambda p, _: Once.apply(p[0]).sum())
    with reference_counts_only():
        with suppress(UnsupportedOperation):
            backend.hvp(loss, [torch.ones(2)], None, torch.ones(2))
        assert loss.calls >= 1
        assert loss.alive == 0


def test_size_is_that_of_the_saved_tensors(backend, net, square_loss, batch, vector):
    x, y = (torch.from_numpy(array) for array in batch)
    own = {t.untyped_storage().data_ptr() for t in (*net.parameters(), x, y)}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = square_loss(net, (x, y))
        torch.autograd.grad(value, list(net.parameters()), value * 0 + 1, create_graph=True)
    expected = sum(storage.nbytes() for place, storage in saved.items() if place not in own)
    product = backend.linearize(square_loss, net, batch)
    before = product.nbytes
    assert isinstance(before, int)
    assert abs(before - expected) <= 16  # the factor of the gradient
    product(vector)
    assert product.nbytes == before


def test_size_is_without_the_parameters_and_the_batch(backend):
    x = np.random.default_rng(0).standard_normal((200, 300))
    product = backend.linearize(
        lambda p, batch: (batch @ p["w"]).square().sum(), {"w": torch.ones(300, dtype=torch.float64)}, x
    )
    assert 200 * 8 <= product.nbytes <= 3 * 200 * 8
