"""A Hessian over several batches keeps their graphs, follows its parameters, and frees what it kept."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

import ihvp

X = np.random.default_rng(3).standard_normal((12, 3))
Y = np.random.default_rng(4).standard_normal((12, 2))


class Watched:
    """Half the mean squared error, with weak references to a tensor of each graph."""

    def __init__(self):
        self.seen = []

    def __call__(self, model, batch):
        error = (model(batch[0]) - batch[1]).exp()
        self.seen.append(weakref.ref(error))  # the result of exp is saved for the backward pass
        return error.log().square().mean() / 2

    @property
    def alive(self):
        gc.collect()
        return sum(reference() is not None for reference in self.seen)


@pytest.fixture
def loss():
    return Watched()


@pytest.fixture
def vector(net):
    return torch.linspace(-1, 1, sum(p.numel() for p in net.parameters()), dtype=torch.float64)


def data(kind):
    x, y = torch.tensor(X), torch.tensor(Y)
    return (x, y) if kind == "one batch" else [(x[:5], y[:5]), (x[5:], y[5:])]


def hessian(loss, net, kind="a list", budget=None, **options):
    return ihvp.Hessian(ihvp.Objective(loss, net, data(kind), **options), budget)


def fresh(loss, net, vector):
    return hessian(loss, net, "one batch") @ vector


KINDS = pytest.mark.parametrize("kind", ["one batch", "a list"])
SIZES = pytest.mark.parametrize("batch_size", [None, 4])


@KINDS
@SIZES
def test_the_loss_is_evaluated_once_a_batch(loss, net, vector, kind, batch_size):
    H = hessian(loss, net, kind, batch_size=batch_size)
    expected = H @ vector
    evaluated = len(loss.seen)
    for _ in range(3):
        torch.testing.assert_close(H @ vector, expected)
    assert len(loss.seen) == evaluated


@KINDS
@SIZES
def test_products_follow_parameters_that_change_in_place(loss, net, vector, kind, batch_size):
    H = hessian(loss, net, kind, batch_size=batch_size)
    before = H @ vector
    with torch.no_grad():
        net.hidden.weight.add_(0.1)
    after = H @ vector
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, fresh(loss, net, vector))


@KINDS
def test_products_follow_a_module_that_is_replaced_on_the_objective(loss, net, vector, kind):
    H = hessian(loss, net, kind)
    _ = H @ vector
    other = type(net)()
    with torch.no_grad():
        other.hidden.weight.mul_(2)
    H.objective.params = other
    torch.testing.assert_close(H @ vector, fresh(loss, other, vector))


def test_the_budget_decides_how_many_graphs_stay(loss, net, vector):
    H = hessian(loss, net, "one batch", batch_size=4)
    expected = H @ vector
    assert loss.alive == 3
    nbytes = H.objective.backend.linearize(loss, net, (torch.tensor(X[:4]), torch.tensor(Y[:4]))).nbytes
    del H
    H = hessian(loss, net, "one batch", batch_size=4, budget=2 * nbytes)
    for _ in range(2):
        torch.testing.assert_close(H @ vector, expected)
    assert loss.alive == 2


def test_no_graph_stays_without_a_budget(loss, net, vector):
    H = hessian(loss, net, budget=0)
    torch.testing.assert_close(H @ vector, fresh(loss, net, vector))
    assert loss.alive == 0


def test_a_hundred_dropped_operators_leave_no_graph(loss, net, vector):
    for _ in range(100):
        _ = hessian(loss, net) @ vector
    assert loss.alive == 0


def test_batches_of_a_loader_are_not_kept(loss, net, vector):
    dataset = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    H = ihvp.Hessian(ihvp.Objective(loss, net, torch.utils.data.DataLoader(dataset, batch_size=5)))
    torch.testing.assert_close(H @ vector, fresh(loss, net, vector))
    assert loss.alive == 0
