"""Derivatives of the gradient by the data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn


def by_differences(backend, loss, params, batch, v, step=1e-5):
    """``∂(∇ loss · v)/∂x`` by central differences of the gradient."""
    x, *others = batch
    result = np.empty_like(x)
    for place in np.ndindex(x.shape):
        sides = []
        for sign in (1, -1):
            moved = x.copy()
            moved[place] += sign * step
            sides.append(float(backend.grad(loss, params, (moved, *others)) @ v))
        result[place] = (sides[0] - sides[1]) / (2 * step)
    return result


def test_they_are_those_of_the_gradient(backend, net, square_loss, batch, vector):
    by_x, _ = backend.input_derivatives(square_loss, net, batch, vector)
    expected = by_differences(backend, square_loss, net, batch, vector)
    np.testing.assert_allclose(by_x, expected, rtol=0, atol=1e-8)


def test_tensors_of_the_user_stay_as_they_are(backend, net, square_loss, batch, vector):
    tensors = [torch.from_numpy(array).clone() for array in batch]
    before = [tensor.clone() for tensor in tensors]
    backend.input_derivatives(square_loss, net, tensors, vector)
    assert not any(tensor.requires_grad for tensor in tensors)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    assert all(parameter.grad is None for parameter in net.parameters())


def test_whole_numbers_have_none_and_the_rest_its_own_dtype(backend):
    embedding = nn.Embedding(4, 3, dtype=torch.float64)
    batch = {"tokens": np.array([0, 2, 1]), "weights": np.ones(3, dtype=np.float32), "name": "train"}

    def loss(model, data):
        return (model(data["tokens"]).sum(dim=1) * data["weights"]).mean()

    found = backend.input_derivatives(loss, embedding, batch, torch.ones(12, dtype=torch.float64))
    assert found["tokens"] is None
    assert found["name"] is None
    assert found["weights"].dtype == torch.float32
    torch.testing.assert_close(found["weights"], torch.ones(3))


def test_an_input_that_the_loss_ignores_has_zeros(backend, net, square_loss, batch, vector):
    found = backend.input_derivatives(
        lambda model, data: square_loss(model, data[:2]), net, (*batch, np.ones(5)), vector
    )
    torch.testing.assert_close(found[2], torch.zeros(5, dtype=torch.float64))


def test_fused_attention_is_replaced(backend):
    generator = torch.Generator().manual_seed(0)
    w = [torch.randn(4, 4, generator=generator, dtype=torch.float64)]
    x = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64).numpy()
    v = torch.randn(16, generator=generator, dtype=torch.float64)

    def loss(params, batch):
        queries = batch[0] @ params[0]
        attended = nn.functional.scaled_dot_product_attention(queries, batch[0], batch[0])
        return attended.square().mean()

    (by_x,) = backend.input_derivatives(loss, w, (x,), v)
    np.testing.assert_allclose(by_x, by_differences(backend, loss, w, (x,), v), rtol=0, atol=1e-8)


@pytest.mark.parametrize("columns", [1, 4])
def test_a_block_has_a_leading_axis(backend, net, square_loss, batch, vector, columns):
    block = torch.stack([vector * (i + 1) for i in range(columns)], dim=1)
    single = backend.input_derivatives(square_loss, net, batch, vector)
    for part, one in zip(backend.input_derivatives(square_loss, net, batch, block), single, strict=True):
        assert part.shape == (columns, *one.shape)
        torch.testing.assert_close(part[-1], columns * one)
