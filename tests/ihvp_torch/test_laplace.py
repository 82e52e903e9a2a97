"""Predictions of linearised models against Jacobians by autograd, whatever the layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal
from torch import nn
from torch.nn.functional import cross_entropy

import ihvp
from ihvp.errors import InvalidOption, NonFinite
from ihvp.uncertainty import jacobian, posterior

COUNT = 12


def predict(model, batch):
    return model(batch[0])


def classify(outputs, batch):
    return cross_entropy(outputs, batch[1])


def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


class Scaled(nn.Module):
    """A layer, and a parameter that belongs to none."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = mlp(), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.scale * self.inner(x)


def objective_of(model, x, only=None, weights=None):
    torch.manual_seed(1)
    labels = torch.randint(0, 3, (len(x),))
    return ihvp.Objective(classify, model.double(), (x, labels), predict=predict, only=only, weights=weights)


def inputs(*shape):
    torch.manual_seed(2)
    return torch.randn(COUNT, *shape, dtype=torch.float64)


def objectives():
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 3))
    embedding = nn.Sequential(nn.Embedding(6, 2), nn.Flatten(), nn.Linear(8, 3))
    yield "mlp", objective_of(mlp(), inputs(4))
    yield "last layer", objective_of(mlp(), inputs(4), only="2")
    yield "convolution", objective_of(conv, inputs(2, 5, 5))
    yield "embedding", objective_of(embedding, torch.randint(0, 6, (COUNT, 4)))
    yield "parameter without a layer", objective_of(Scaled(), inputs(4))


OBJECTIVES = dict(objectives())


def rows(objective, x):
    """The Jacobian ``(n, D, P)``."""
    blocks, model = objective.blocks, objective.params
    names = sorted(blocks, key=lambda name: blocks[name].start)
    some = [dict(model.named_parameters())[name] for name in names]
    found = [
        torch.cat([part.reshape(-1) for part in torch.autograd.grad(output, some, retain_graph=True)])
        for output in model(x).reshape(-1)
    ]
    return torch.stack(found).reshape(len(x), -1, objective.num_params).numpy()


CURVATURES = {
    "gauss-newton": ihvp.GaussNewton,
    "kfac": ihvp.KFAC,
    "ekfac": ihvp.EKFAC,
    "full rank": lambda objective: ihvp.FullRank(ihvp.eigsh(ihvp.GaussNewton(objective), 4)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("curvature", CURVATURES)
def test_predictions_are_those_of_the_jacobian(name, curvature, monkeypatch):
    monkeypatch.setattr(jacobian, "_NUMBERS", 1500)  # a few examples at a time
    monkeypatch.setattr(jacobian, "_CACHED", 100)
    objective = OBJECTIVES[name]
    A = CURVATURES[curvature](objective)
    laplace = ihvp.Laplace(objective, A, prior_precision=0.3)
    x = objective.batches.data[0][:7]
    J = rows(objective, x)
    sigma = np.linalg.inv(COUNT * A.to_dense().numpy() + 0.3 * np.eye(objective.num_params))
    found = laplace.predictive((x, torch.zeros(7)))
    assert_allclose(found.covariance, J @ sigma @ J.transpose(0, 2, 1), rtol=1e-9, atol=1e-12)
    assert_allclose(found.mean, objective.params(x).detach().numpy(), rtol=1e-12)
    if curvature == "gauss-newton":
        other = ihvp.predictive_variance(objective, ihvp.Dense(torch.from_numpy(sigma)), (x, torch.zeros(7)))
        assert_allclose(found.variance, other, rtol=1e-9)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gauss_newton_matrices_from_roots(name, monkeypatch):
    monkeypatch.setattr(jacobian, "_CACHED", 100)  # a few examples at a time
    square, late = jacobian.square_of_rows, []
    monkeypatch.setattr(
        jacobian, "square_of_rows", lambda pulled, size: late.append(size) or square(pulled, size)
    )
    objective = OBJECTIVES[name]
    weighted = objective.on(objective.batches.data, loss=weighted_loss, weights=lambda batch: batch[1] + 0.5)
    for some in (objective, weighted, objective.on(list(pieces(objective)))):
        formed = jacobian.gauss_newton_matrix(some)
        assert (formed is None) == (name in ("embedding", "parameter without a layer"))
        if formed is not None:
            assert_allclose(formed, ihvp.GaussNewton(some).to_dense(), rtol=1e-10, atol=1e-14)
    assert bool(late) == (name in ("mlp", "last layer"))


def pieces(objective):
    x, y = objective.batches.data
    return [(x[:5], y[:5]), (x[5:], y[5:])]


def weighted_loss(outputs, batch):
    weights = batch[1] + 0.5
    return (cross_entropy(outputs, batch[1], reduction="none") * weights).sum() / weights.sum()


def test_examples_count_by_their_weights():
    objective = OBJECTIVES["mlp"]
    x, y = objective.batches.data
    twice = objective.on((torch.cat([x, x[y == 1]]), torch.cat([y, y[y == 1]])))
    weighted = objective.on(
        (x, y),
        loss=lambda f, b: (cross_entropy(f, b[1], reduction="none") * w(b)).sum() / w(b).sum(),
        weights=w,
    )
    one, other = (ihvp.Laplace(some).log_marginal_likelihood() for some in (twice, weighted))
    assert other.value == pytest.approx(one.value, rel=1e-12)
    assert other.slopes["all"] == pytest.approx(one.slopes["all"], rel=1e-10)


def w(batch):
    return 1.0 + (batch[1] == 1)


def test_by_products_of_a_model(monkeypatch):
    objective = OBJECTIVES["mlp"]
    exact = ihvp.Laplace(objective)
    monkeypatch.setattr(posterior, "_DENSE", 1)
    laplace = ihvp.Laplace(objective, solver=ihvp.CG(rtol=1e-10))
    assert isinstance(laplace.covariance, posterior.ProductPosterior)
    assert_allclose(laplace.predictive().covariance, exact.predictive().covariance, rtol=1e-7, atol=1e-10)


class Line(nn.Module):
    """Two outputs, linear in the features."""

    def __init__(self, weight):
        super().__init__()
        self.head = nn.Linear(3, 2, bias=False, dtype=torch.float64)
        self.head.weight.data = weight

    def forward(self, x):
        return self.head(x)


def half_squared(outputs, batch):
    return ((outputs - batch[1]) ** 2).sum(dim=1).mean() / 2


def line(sigma, tau, loss=half_squared):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(20, 3)), generator.normal(size=(20, 2))
    best = np.linalg.solve(x.T @ x / sigma**2 + tau * np.eye(3), x.T @ y / sigma**2).T
    data = tuple(map(torch.from_numpy, (x, y)))
    return ihvp.Objective(loss, Line(torch.from_numpy(best)), data, predict=predict), x, y


@pytest.mark.parametrize("curvature", [ihvp.GaussNewton, ihvp.Hessian, ihvp.KFAC])
def test_linear_regression_is_exact(curvature):
    sigma, tau = 0.6, 2.0
    objective, x, y = line(sigma, tau)
    laplace = ihvp.Laplace(objective, curvature(objective), prior_precision=tau, noise=sigma)
    kernel = sigma**2 * np.eye(20) + x @ x.T / tau
    found = laplace.log_marginal_likelihood()
    exact = sum(multivariate_normal.logpdf(column, cov=kernel) for column in y.T)
    assert found.value == pytest.approx(exact, rel=1e-10)
    new = np.random.default_rng(1).normal(size=(5, 3))
    predictive = laplace.predictive((torch.from_numpy(new), torch.zeros(5, 2)))
    variance = np.diagonal(new @ np.linalg.inv(x.T @ x / sigma**2 + tau * np.eye(3)) @ new.T)
    assert_allclose(predictive.covariance, variance[:, None, None] * np.eye(2), rtol=1e-9, atol=1e-12)
    assert_allclose(predictive.standard_deviation**2, variance[:, None] + sigma**2 + np.zeros(2), rtol=1e-9)
    assert_allclose(predictive.mean, objective.params(torch.from_numpy(new)).detach().numpy(), rtol=1e-12)


def test_the_noise_of_the_largest_evidence():
    objective, _, _ = line(0.6, 2.0)
    best = ihvp.Laplace(objective, prior_precision=2.0, noise=0.6).optimise(noise=True)
    found = best.log_marginal_likelihood()
    assert max(map(abs, found.slopes.values())) < 1e-3

    def value(factor, noise):
        again = ihvp.Laplace(objective, prior_precision=best.prior_precision * factor, noise=noise)
        return float(again.log_marginal_likelihood())

    around = [value(f, best.noise * g) for f, g in ((1.05, 1), (0.95, 1), (1, 1.05), (1, 0.95))]
    assert max(around) < found.value
    # A derivative that is not 0, against a difference.
    elsewhere = ihvp.Laplace(objective, prior_precision=2.0, noise=0.6).log_marginal_likelihood()
    difference = float(
        ihvp.Laplace(objective, prior_precision=2.0, noise=0.6 * np.exp(1e-5)).log_marginal_likelihood()
    )
    assert elsewhere.slopes["noise"] == pytest.approx((difference - elsewhere.value) / 1e-5, rel=1e-3)


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_a_loss_that_is_no_half_squared_error(factor):
    objective, _, _ = line(1.0, 1.0, lambda f, b: factor * half_squared(f, b))
    with pytest.raises(InvalidOption, match=f"its curvature in the outputs is {factor:g} in place of 1"):
        ihvp.Laplace(objective, noise=1.0)
    with pytest.raises(InvalidOption, match="half the squared error"):
        ihvp.Laplace(OBJECTIVES["mlp"], noise=1.0)


def test_predictions_that_are_no_numbers():
    objective = OBJECTIVES["mlp"]
    with pytest.raises(NonFinite):
        ihvp.Laplace(objective).predictive((torch.full((2, 4), np.nan, dtype=torch.float64), torch.zeros(2)))


def test_one_precision_for_the_parts_of_a_layer_with_factors():
    objective = OBJECTIVES["mlp"]
    precisions = {"0.weight": 1.0, "0.bias": 2.0, "2": 1.0}
    ihvp.Laplace(objective, prior_precision=precisions)
    with pytest.raises(InvalidOption, match="layer 0"):
        ihvp.Laplace(objective, ihvp.KFAC(objective), prior_precision=precisions)
