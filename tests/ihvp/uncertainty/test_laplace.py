"""Posteriors against Bayesian linear regression, where everything is exact, and against dense algebra."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import multivariate_normal

import ihvp
from ihvp.errors import (
    IndefinitePosterior,
    InvalidOption,
    MissingCapability,
    NoEvidenceMaximum,
    SamplesNotConverged,
)
from ihvp.kronecker import BlockStructured
from ihvp.kronecker.blocks import DenseBlock, DiagonalBlock
from ihvp.uncertainty import posterior as forms
from ihvp.uncertainty.evidence import maximise

N, P = 40, 9
rng = np.random.default_rng(1)
X = rng.normal(size=(N, P)) * np.geomspace(3, 0.03, P)
Y = X @ rng.normal(size=P) + rng.normal(size=N)
A = X.T @ X / N
PARTS = {"first": slice(0, 4), "second": slice(4, 9)}
PRIORS = [0.7, {"first": 0.5, "second": 3.0}]
every_prior = pytest.mark.parametrize("prior", PRIORS, ids=["one", "two"])


def entries(prior):
    return (
        np.repeat([prior["first"], prior["second"]], [4, 5]) if isinstance(prior, dict) else np.full(P, prior)
    )


def regression(prior=None, w=None):
    """Half the mean squared error, at the largest posterior density for the prior."""
    if w is None:
        w = np.linalg.solve(X.T @ X + np.diag(entries(prior)), X.T @ Y)
    params = {name: w[place].copy() for name, place in PARTS.items()}
    flat = lambda w: np.concatenate([w["first"], w["second"]])  # noqa: E731

    def grad(w, batch):
        x, y = batch
        found = x.T @ (x @ flat(w) - y) / len(y)
        return {name: found[place] for name, place in PARTS.items()}

    def loss(w, batch):
        return float(np.mean((batch[0] @ flat(w) - batch[1]) ** 2) / 2)

    return ihvp.Objective(loss, params, (X, Y), grad=grad)


def all_pairs(matrix):
    return ihvp.LowRank.of(*np.linalg.eigh(matrix))


def by_blocks(matrix):
    """A block for each part: of the first by its eigenvectors, of the second its diagonal."""
    values, vectors = np.linalg.eigh(matrix[:4, :4])
    blocks = [DenseBlock("first", slice(0, 4), values, vectors)]
    blocks.append(DiagonalBlock("second", slice(4, 9), np.diagonal(matrix)[4:].copy()))
    return BlockStructured(ihvp.Dense(matrix).space, blocks)


def truncated(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return ihvp.FullRank.of(values[-4:], vectors[:, -4:])


every_form = pytest.mark.parametrize("form", [ihvp.Dense, all_pairs, by_blocks, truncated])


@every_prior
@every_form
def test_covariance_evidence_and_slopes_are_those_of_dense_algebra(prior, form):
    curvature, d = form(A), entries(prior)
    laplace = ihvp.Laplace(regression(prior), curvature, prior_precision=prior, temperature=2.0)
    precision = N / 2 * curvature.to_dense() + np.diag(d)
    assert_allclose(laplace.precision.to_dense(), precision, rtol=1e-12)
    assert_allclose(laplace.covariance.to_dense(), np.linalg.inv(precision), rtol=1e-9, atol=1e-12)
    assert_allclose(laplace.covariance @ np.ones(P), np.linalg.solve(precision, np.ones(P)), rtol=1e-9)
    root = laplace.covariance.sample(np.eye(P), 1, 1.0)
    assert_allclose(root @ root.T, np.linalg.inv(precision), rtol=1e-9, atol=1e-12)
    half = laplace.covariance.half(np.eye(P))
    assert_allclose(half.T @ half, np.linalg.inv(precision), rtol=1e-9, atol=1e-12)

    found = laplace.log_marginal_likelihood()
    assert_allclose(found.value, log_evidence(laplace, d, precision), rtol=1e-12)
    assert found.standard_error == 0.0
    for name, slope in found.slopes.items():
        step = np.zeros(P) + 1e-5 if name == "all" else np.isin(np.arange(P), np.r_[PARTS[name]]) * 1e-5
        above, below = (
            log_evidence(laplace, d * np.exp(s), precision + np.diag(d * (np.exp(s) - 1)))
            for s in (step, -step)
        )
        assert slope == pytest.approx((above - below) / 2e-5, abs=1e-6)
    assert found.effective_parameters == pytest.approx(P - np.trace(np.diag(d) @ np.linalg.inv(precision)))


def log_evidence(laplace, d, precision):
    w = laplace.mean
    ratio = np.linalg.slogdet(precision)[1] - np.log(d).sum()
    return -N / 2 * laplace.objective.value() - (d @ w**2 + ratio) / 2


@every_prior
def test_the_evidence_is_the_density_of_the_data(prior):
    objective = regression(prior)
    found = ihvp.Laplace(objective, ihvp.Dense(A), prior_precision=prior).log_marginal_likelihood()
    exact = multivariate_normal.logpdf(Y, cov=np.eye(N) + (X / entries(prior)) @ X.T)
    assert found.value == pytest.approx(exact + N / 2 * np.log(2 * np.pi), rel=1e-12)
    assert found.gap < 1e-15


def test_the_gap_is_what_a_newton_step_wins():
    best = regression(0.7)
    away = best.at({name: part + 0.1 for name, part in best.params.items()})

    def density(objective):
        w = np.concatenate(list(objective.params.values()))
        return -N * objective.value() - 0.7 * w @ w / 2

    found = ihvp.Laplace(away, ihvp.Dense(A), prior_precision=0.7).log_marginal_likelihood()
    assert found.gap == pytest.approx(density(best) - density(away), rel=1e-9)


@every_prior
@every_form
def test_the_largest_evidence_is_mackays_fixed_point(prior, form):
    objective = regression(prior)
    laplace = ihvp.Laplace(objective, form(A), prior_precision=prior)
    best = laplace.optimise()
    w, sigma = best.mean, np.diagonal(best.covariance.to_dense())
    precisions = best.prior_precision if isinstance(prior, dict) else {"all": best.prior_precision}
    for name, precision in precisions.items():
        part = PARTS.get(name, slice(0, P))
        gamma = np.sum(1 - precision * sigma[part])
        assert precision == pytest.approx(gamma / np.sum(w[part] ** 2), rel=1e-4)
    found = best.log_marginal_likelihood()
    assert max(map(abs, found.slopes.values())) < 1e-4
    assert found.value > float(laplace.log_marginal_likelihood())
    assert laplace.prior_precision == prior


def test_samples_have_the_mean_the_covariance_and_a_seed():
    laplace = ihvp.Laplace(regression(0.7), ihvp.Dense(A), prior_precision=0.7)
    samples = laplace.sample(20_000, seed=3)
    assert samples.shape == (P, 20_000)
    white = np.linalg.solve(
        np.linalg.cholesky(laplace.covariance.to_dense()), samples - laplace.mean[:, None]
    )
    assert_allclose(white.mean(axis=1), np.zeros(P), atol=5 / 20_000**0.5)
    assert_allclose(np.cov(white), np.eye(P), atol=5 * (2 / 20_000) ** 0.5)
    assert_array_equal(laplace.sample(2, seed=3), laplace.sample(2, seed=3))
    assert np.all(laplace.sample(2, seed=3) != laplace.sample(2, seed=4))
    assert_array_equal(laplace.objective.at(samples[:, 0]).params["second"], samples[4:, 0])


@pytest.fixture
def products(monkeypatch):
    """Matrices are not formed."""
    monkeypatch.setattr(forms, "_DENSE", 1)


@every_prior
def test_by_products_solves_and_samples_are_the_same(products, prior):
    laplace = ihvp.Laplace(
        regression(prior), ihvp.Dense(A), prior_precision=prior, solver=ihvp.CG(rtol=1e-12)
    )
    sigma = np.linalg.inv(N * A + np.diag(entries(prior)))
    assert_allclose(laplace.covariance.to_dense(), sigma, rtol=1e-8, atol=1e-12)
    assert_allclose(laplace.precision.to_dense(), np.linalg.inv(sigma), rtol=1e-9, atol=1e-12)
    root = laplace.covariance.sample(np.eye(P), P, 1e-6)
    assert_allclose(root @ root.T, sigma, rtol=1e-8, atol=1e-10)


def test_the_bound_on_samples_by_lanczos_steps_holds(products):
    laplace = ihvp.Laplace(regression(0.01), ihvp.Dense(A), prior_precision=0.01)
    values, vectors = np.linalg.eigh(N * A + 0.01 * np.eye(P))
    white = np.random.default_rng(0).normal(size=(P, 30))
    exact, bounds = vectors @ (vectors.T @ white / values[:, None] ** 0.5), []
    for steps in range(2, P):
        found = laplace.covariance.sample(white, steps, np.inf)
        error = (np.linalg.norm(found - exact, axis=0) / np.linalg.norm(found, axis=0)).max()
        with pytest.raises(SamplesNotConverged, match=f"After {steps} Lanczos steps") as caught:
            laplace.covariance.sample(white, steps, 1e-300)
        assert error <= caught.value.error * (1 + 1e-9) + 1e-12
        bounds.append(caught.value.error)
    assert bounds[0] > 100 * bounds[-1]


def test_by_products_the_evidence_has_a_standard_error(products):
    objective, exact = regression(0.7), multivariate_normal.logpdf(Y, cov=np.eye(N) + X @ X.T / 0.7)
    laplace = ihvp.Laplace(objective, ihvp.Dense(A), prior_precision=0.7, num_samples=400, steps=P)
    found = laplace.log_marginal_likelihood()
    difference = found.value - exact - N / 2 * np.log(2 * np.pi)
    assert 0 < found.standard_error < 0.5
    assert abs(difference) < 3 * found.standard_error
    best = laplace.optimise()
    assert abs(best.log_marginal_likelihood().slopes["all"]) < 1e-4
    assert len(laplace._density) == 1
    assert best._density is laplace._density


def test_by_products_the_evidence_has_one_precision(products):
    laplace = ihvp.Laplace(regression(PRIORS[1]), ihvp.Dense(A), prior_precision=PRIORS[1])
    with pytest.raises(InvalidOption, match="KFAC"):
        laplace.log_marginal_likelihood()


@every_prior
def test_what_a_truncated_curvature_leaves_out_is_told_with_bounds_that_hold(prior):
    exact = ihvp.Laplace(regression(prior), ihvp.Dense(A), prior_precision=prior)
    for form in (truncated, lambda matrix: ihvp.LowRank(ihvp.eigsh(ihvp.Dense(matrix), 4))):
        laplace = ihvp.Laplace(regression(prior), form(A), prior_precision=prior)
        told = laplace.report().splitlines()[-1]
        assert told.startswith("left out: 5 eigenvalues")
        factor = float(told.partition("a factor of up to ")[2].partition(",")[0])
        of_evidence = float(told.rpartition(" ")[2])
        ratios = np.diagonal(exact.covariance.to_dense()) / np.diagonal(laplace.covariance.to_dense())
        assert 1.1 < max(ratios.max(), 1 / ratios.min()) <= factor
        difference = float(exact.log_marginal_likelihood()) - float(laplace.log_marginal_likelihood())
        assert 0.1 < abs(difference) <= of_evidence
    assert "left out" not in exact.report()


def test_parameters_stay_as_they_are():
    objective = regression(0.7)
    before = {name: part.copy() for name, part in objective.params.items()}
    ihvp.Laplace(objective, ihvp.Dense(A)).optimise().sample(3)
    assert all(np.array_equal(objective.params[name], part) for name, part in before.items())


@pytest.mark.parametrize(
    "precision", [0, 0.0, -1.0, np.nan, np.inf, "1", None, {}, {"first": 1.0, "second": 0.0}]
)
def test_precisions_are_above_zero(precision):
    with pytest.raises(InvalidOption, match="prior_precision"):
        ihvp.Laplace(regression(1.0), ihvp.Dense(A), prior_precision=precision)


@pytest.mark.parametrize(
    ("precisions", "says"),
    [
        ({"first": 1.0}, "one for second, too"),
        ({"first": 1.0, "third": 1.0}, "names among first, second"),
    ],
)
def test_each_parameter_has_one_precision(precisions, says):
    with pytest.raises(InvalidOption, match=says):
        ihvp.Laplace(regression(1.0), ihvp.Dense(A), prior_precision=precisions)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"noise": -1.0}, {"noise": 0}, {"seed": -1}])
def test_options_out_of_range(options):
    with pytest.raises(InvalidOption, match=next(iter(options))):
        ihvp.Laplace(regression(1.0), ihvp.Dense(A), **options)


@pytest.mark.parametrize("lowest", [-1.0, -0.7 / N])
@pytest.mark.parametrize("form", [ihvp.Dense, all_pairs])
def test_a_posterior_that_is_none_is_named_with_what_would_do(lowest, form):
    matrix = np.diag(np.r_[np.arange(P - 1.0), lowest])
    told = r"'second' 100% \(entries 4\).*prior precision above"
    with pytest.raises(IndefinitePosterior, match=told) as caught:
        ihvp.Laplace(regression(0.7), form(matrix), prior_precision=0.7)
    enough = 0.7 * caught.value.suggested_factor * (1 + 1e-6)
    assert enough == pytest.approx(-N * lowest, abs=1e-3)
    ihvp.Laplace(regression(0.7), form(matrix), prior_precision=enough)


def test_a_posterior_that_is_none_is_named_by_products(products):
    laplace = ihvp.Laplace(regression(0.7), ihvp.Dense(np.diag(np.r_[np.arange(P - 1.0), -1.0])), steps=P)
    for call in (laplace.sample, lambda _: laplace.log_marginal_likelihood()):
        with pytest.raises(IndefinitePosterior, match=r"'second' 100% \(entries 4\)"):
            call(2)
    with pytest.raises(ihvp.errors.IndefiniteCurvature):
        laplace.covariance.to_dense()


def test_a_curvature_of_other_parameters():
    with pytest.raises(ihvp.errors.VectorError):
        ihvp.Laplace(regression(1.0), ihvp.Dense(np.eye(3)))


def test_nothing_to_optimise():
    laplace = ihvp.Laplace(regression(w=np.zeros(P)), ihvp.Dense(A))
    with pytest.raises(InvalidOption, match="other than 0"):
        laplace.optimise()
    with pytest.raises(InvalidOption, match="noise"):
        ihvp.Laplace(regression(1.0), ihvp.Dense(A)).optimise(noise=True)


def test_a_search_that_ends_on_a_slope():
    with pytest.raises(NoEvidenceMaximum, match="slopes"):
        maximise(lambda x: (float(x.sum()), np.ones(1)), np.zeros(1), np.ones(1))


def test_predictions_need_a_model():
    laplace = ihvp.Laplace(regression(1.0), ihvp.Dense(A))
    with pytest.raises(InvalidOption, match="predict"):
        laplace.predictive()
    with pytest.raises(InvalidOption, match="predict"):
        ihvp.predictive_variance(laplace.objective, laplace.covariance)
    with pytest.raises(InvalidOption, match="predict"):
        ihvp.Laplace(laplace.objective)
    with_model = ihvp.Objective(
        lambda f, b: f @ f, np.ones(2), predict=lambda w, b: w, grad=lambda w, b: 2 * w
    )
    with pytest.raises(MissingCapability, match="torch, TensorFlow or JAX"):
        ihvp.Laplace(with_model, ihvp.Dense(np.eye(2))).predictive()


def test_probabilities_shrink_with_the_variance():
    covariance = np.array([[[0.0]], [[8 / np.pi * 3]]])
    found = ihvp.uncertainty.Predictive(np.full((2, 1), 2.0), covariance, noise=0.5)
    assert_allclose(found.probabilities()[:, 0], 1 / (1 + np.exp([-2.0, -1.0])))
    assert_allclose(found.standard_deviation[:, 0] ** 2, covariance[:, 0, 0] + 0.25)
    classes = dataclasses.replace(found, mean=np.array([[1.0, 1.0, 3.0]]), covariance=np.zeros((1, 3, 3)))
    assert_allclose(classes.probabilities()[0], np.exp([1, 1, 3]) / np.exp([1, 1, 3]).sum())
