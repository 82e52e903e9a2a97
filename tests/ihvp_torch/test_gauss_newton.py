from __future__ import annotations

import numpy as np
import pytest
import torch

from ihvp.errors import LossIndependentOfParameters, LossNotScalar


def softmax_loss(outputs, batch):
    return torch.nn.functional.cross_entropy(outputs, batch[1])


def predict(model, batch):
    return model(batch[0])


@pytest.fixture
def labelled(batch):
    return batch[0], np.array([0, 1, 1, 0, 1])


@pytest.fixture
def dense(net, labelled):
    """``Jᵀ H J`` in numpy: the Jacobian of the tanh net and the Hessian of the mean cross entropy by hand."""
    x = labelled[0]
    a, b, c, d = (p.detach().numpy() for p in net.parameters())
    total = np.zeros((26, 26))
    for row in x:
        h = np.tanh(a @ row + b)
        z = c @ h + d
        p = np.exp(z) / np.exp(z).sum()
        inner = c * (1 - h**2)
        eye = np.eye(2)
        J = np.hstack([np.kron(inner, row[None, :]), inner, np.kron(eye, h[None, :]), eye])
        total += J.T @ (np.diag(p) - np.outer(p, p)) @ J / len(x)
    return total


def test_product_is_the_dense_one(backend, net, labelled, vector, dense):
    product = backend.gnvp(predict, softmax_loss, net, labelled, vector)
    np.testing.assert_allclose(product, dense @ vector.numpy(), rtol=1e-11, atol=1e-14)


def test_block_is_the_dense_matrix(backend, net, labelled, dense):
    block = backend.gnvp(predict, softmax_loss, net, labelled, torch.eye(26, dtype=torch.float64))
    np.testing.assert_allclose(block, dense, rtol=1e-11, atol=1e-14)
    assert block.T.is_contiguous()


def test_forward_mode_agrees(backend, net, labelled, vector, dense):
    backend._jacobian_ways[predict] = "forward mode"
    product = backend.gnvp(predict, softmax_loss, net, labelled, torch.stack([vector, vector], dim=1))
    np.testing.assert_allclose(product[:, 1], dense @ vector.numpy(), rtol=1e-11, atol=1e-14)
    assert backend._jacobian_ways[predict] == "forward mode"


def test_outputs_may_be_a_tree_with_constants(backend, net, labelled, vector, dense):
    def parts(model, batch):
        z = model(batch[0])
        return {"first": z[:, :1], "rest": (z[:, 1:], torch.tensor(2.0)), "note": "logits"}

    def loss(outputs, batch):
        assert outputs["note"] == "logits"
        z = torch.cat([outputs["first"], outputs["rest"][0]], dim=1)
        return softmax_loss(z, batch) * outputs["rest"][1]

    product = backend.gnvp(parts, loss, net, labelled, vector)
    np.testing.assert_allclose(product, 2 * dense @ vector.numpy(), rtol=1e-11, atol=1e-14)


def test_values_of_a_state_are_used(backend, net, labelled, vector, dense):
    state = backend.unflatten(backend.flatten(net), net)
    with torch.no_grad():
        kept = {name: tensor.clone() for name, tensor in state.items()}
        state.update(kept)
        net.out.weight.zero_()
    product = backend.gnvp(predict, softmax_loss, state, labelled, vector)
    np.testing.assert_allclose(product, dense @ vector.numpy(), rtol=1e-11, atol=1e-14)


def test_equals_the_hessian_where_the_prediction_is_linear(backend, batch):
    params = {"w": torch.ones(3, 2, dtype=torch.float64)}
    v = torch.arange(6.0, dtype=torch.float64)
    linear = lambda p, data: data[0] @ p["w"]  # noqa: E731
    loss = lambda out, data: (out - data[1]).pow(4).mean()  # noqa: E731
    expected = backend.hvp(lambda p, data: loss(linear(p, data), data), params, batch, v)
    torch.testing.assert_close(backend.gnvp(linear, loss, params, batch, v), expected)


def test_prediction_that_ignores_the_parameters_is_refused(backend, batch):
    with pytest.raises(LossIndependentOfParameters):
        backend.gnvp(lambda p, data: data[0], lambda out, _: out.sum(), [torch.ones(2)], batch, torch.ones(2))


def test_loss_per_example_is_refused(backend, net, batch, vector):
    with pytest.raises(LossNotScalar):
        backend.gnvp(predict, lambda out, _: out.sum(dim=1), net, batch, vector)
