"""A cross-entropy with class weights, every one of its examples removed and the model trained again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

import ihvp

COUNT, RARE, DECAY = 120, 6.0, 0.01
CLASS_WEIGHTS = torch.tensor([1.0, RARE], dtype=torch.float64)


class Problem:
    """Two classes, one of them rare, and a linear model trained to its optimum by Newton's method."""

    def __init__(self):
        random = torch.Generator().manual_seed(0)
        self.x = torch.randn(COUNT, 4, generator=random, dtype=torch.float64)
        noise = torch.randn(COUNT, generator=random, dtype=torch.float64)
        self.y = (self.x[:, 0] + noise > 0.9).long()
        self.test = torch.randn(3, 4, generator=random, dtype=torch.float64), torch.tensor([0, 1, 1])
        self.weights = CLASS_WEIGHTS[self.y]
        self.optimum = self.trained([])

    def trained(self, removed):
        """Newton's method in numpy: the sum of the remaining terms over the weight of all, and the decay."""
        x, y, shares = self.x.numpy(), self.y.numpy(), self.weights.numpy() / self.weights.numpy().sum()
        shares = np.where(np.isin(np.arange(COUNT), removed), 0.0, shares)
        omega = np.zeros((2, 4))
        for _ in range(30):
            p = np.exp(x @ omega.T)
            p /= p.sum(axis=1, keepdims=True)
            gradient = (shares[:, None] * (p - np.eye(2)[y])).T @ x + 2 * DECAY * omega
            if np.linalg.norm(gradient) < 1e-12:
                return torch.tensor(omega)
            outputs = np.einsum("na,ab->nab", p, np.eye(2)) - np.einsum("na,nb->nab", p, p)
            hessian = np.einsum("n,nab,ni,nj->aibj", shares, outputs, x, x, optimize=True).reshape(8, 8)
            omega -= np.linalg.solve(hessian + 2 * DECAY * np.eye(8), gradient.ravel()).reshape(2, 4)
        raise AssertionError("Newton's method did not converge")


def train_loss(params, batch):
    return functional.cross_entropy(batch[0] @ params[0].T, batch[1], weight=CLASS_WEIGHTS)


def objective_loss(params, batch):
    return train_loss(params, batch) + DECAY * (params[0] ** 2).sum()


def test_loss(params, batch):
    return functional.cross_entropy(batch[0] @ params[0].T, batch[1])


# pytest would take it for a test.
test_loss.__test__ = False


@pytest.fixture(scope="module")
def problem():
    return Problem()


def weights(batch):
    return CLASS_WEIGHTS[batch[1]]


def removals(problem, weights=None, **options):
    objective = ihvp.Objective(objective_loss, [problem.optimum], (problem.x, problem.y), weights=weights)
    return ihvp.leave_one_out(
        objective,
        lambda removed, start: [problem.trained(removed)],
        range(COUNT),
        problem.test,
        test_loss,
        train_loss=train_loss,
        progress=False,
        **options,
    )


def test_every_removal_is_predicted(problem):
    found = removals(problem, weights=weights)
    assert found.pearson.value >= 0.98
    assert removals(problem, weights=weights, second_order=True).slope == pytest.approx(1, abs=0.15)
    # The retrained losses themselves, by their definition.
    omega, (x, y) = problem.trained([3]), problem.test
    rise = [float(functional.cross_entropy(x @ w.T, y)) for w in (omega, problem.optimum)]
    np.testing.assert_allclose(found.actual[3], rise[0] - rise[1], rtol=1e-9)


def test_without_weights_it_is_refused(problem):
    with pytest.raises(ihvp.errors.LossNotAdditive, match=r"weights="):
        removals(problem)
