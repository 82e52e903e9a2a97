from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ihvp.errors import DataError, EmptyData, LossNotScalar, UnequalBatches


def rows_in_turn(backend, loss, params, batch):
    size = len(batch[0])
    return torch.stack([backend.grad(loss, params, [a[i : i + 1] for a in batch]) for i in range(size)])


def test_row_is_the_gradient_of_its_example(backend, net, square_loss, batch, gradient):
    rows = backend.per_example_grads(square_loss, net, batch)
    torch.testing.assert_close(rows, rows_in_turn(backend, square_loss, net, batch))
    np.testing.assert_allclose(rows.mean(dim=0), gradient, rtol=1e-12)


def test_examples_are_computed_together(backend, net, square_loss, batch):
    calls = []

    def loss(model, data):
        calls.append(None)
        return square_loss(model, data)

    backend.per_example_grads(loss, net, batch)
    assert len(calls) == 1


def test_rows_are_computed_in_tiles(backend):
    calls = []

    def loss(p, data):
        calls.append(None)
        return (data[0] @ p[0]).mean() + (p[1] * p[1]).sum() * data[0].mean()

    x = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    other = torch.full((1 << 21,), 0.5)
    rows = backend.per_example_grads(loss, [torch.ones(2, dtype=torch.float64), other], (x,))
    assert len(calls) == 7
    assert rows.shape == (7, 2 + (1 << 21))
    assert rows.dtype == torch.float64
    torch.testing.assert_close(rows[:, :2], x)
    torch.testing.assert_close(rows[:, -1], x.mean(dim=1), rtol=1e-6, atol=1e-6)


def test_dict_of_tensors_gives_the_same_rows(backend, batch):
    params = {"w": torch.ones(3, dtype=torch.float64), "b": torch.tensor(2.0, dtype=torch.float64)}
    rows = backend.per_example_grads(lambda p, d: (d["x"] @ p["w"] + p["b"]).mean(), params, {"x": batch[0]})
    np.testing.assert_allclose(rows, np.hstack([batch[0], np.ones((5, 1))]), rtol=1e-14)


def test_leaves_that_are_not_per_example_belong_to_all(backend, batch):
    data = {"x": batch[0], "scale": torch.tensor(3.0, dtype=torch.float64), "name": "train"}
    rows = backend.per_example_grads(
        lambda p, d: (d["x"] @ p[0]).mean() * d["scale"], [torch.ones(3, dtype=torch.float64)], data
    )
    np.testing.assert_allclose(rows, 3 * batch[0], rtol=1e-14)


@pytest.mark.parametrize(
    "branch",
    [lambda h: h * 2 if h.sum().item() > 0 else h, lambda h: h.masked_select(h > 0)],
    ids=["branch on a value", "shape that depends on values"],
)
def test_what_vmap_cannot_do_is_done_in_turn(backend, net, batch, branch):
    def loss(model, data):
        return branch(model(data[0])).sum()

    rows = backend.per_example_grads(loss, net, batch)
    torch.testing.assert_close(rows, rows_in_turn(backend, loss, net, batch))


def test_batch_norm_in_evaluation_mode(backend, square_loss, batch):
    module = nn.Sequential(
        nn.Linear(3, 2, dtype=torch.float64), nn.BatchNorm1d(2, dtype=torch.float64)
    ).eval()
    rows = backend.per_example_grads(square_loss, module, batch)
    torch.testing.assert_close(rows, rows_in_turn(backend, square_loss, module, batch))


def test_error_of_the_loss_passes_unchanged(backend, batch):
    mine = ValueError("mine")

    def loss(p, _):
        raise mine

    with pytest.raises(ValueError, match="mine") as caught:
        backend.per_example_grads(loss, [torch.ones(3)], batch)
    assert caught.value is mine


def test_loss_per_example_is_refused(backend, batch):
    with pytest.raises(LossNotScalar):
        backend.per_example_grads(lambda p, d: d[0] @ p[0], [torch.ones(3, dtype=torch.float64)], batch)


@pytest.mark.parametrize(
    ("batch", "error"),
    [
        ((np.ones((3, 2)), np.ones(4)), UnequalBatches),
        (None, DataError),
        (({"scale": 2.0},), DataError),
        ((np.ones((0, 2)),), EmptyData),
    ],
    ids=["unequal", "none", "no arrays", "empty"],
)
def test_batch_without_examples_is_refused(backend, batch, error):
    with pytest.raises(error):
        backend.per_example_grads(lambda p, _: p[0].sum(), [torch.ones(2)], batch)
