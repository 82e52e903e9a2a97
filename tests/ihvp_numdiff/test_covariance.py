"""The covariances of five regressions against statsmodels' own numbers, from gradients alone."""

from __future__ import annotations

import numpy as np
import pytest

import ihvp
from tests.statistics import models
from tests.statistics.models import CLUSTERS, N, X

TOLERANCE = 1e-6
OPTIONS = {
    "nonrobust": {},
    "HC0": {"kind": "sandwich"},
    "clustered": {"kind": "sandwich", "clusters": CLUSTERS},
    "clustered, corrected": {"kind": "sandwich", "clusters": CLUSTERS, "correction": True},
}


@pytest.fixture(params=models.NAMES)
def model(request):
    return models.model(request.param)


@pytest.fixture(params=[name for name in models.NAMES if name != "MNLogit"])
def single(request):
    """A model with one linear predictor."""
    return models.model(request.param)


def objective_of(model, params=None, data=None, **options):
    params = model["params"] if params is None else params
    data = (X, model.y) if data is None else data
    with ihvp.use("numdiff", order=4):
        return ihvp.Objective(params=params, data=data, grad=models.gradient(model.name), **options)


def covariance_of(model, **options):
    return ihvp.covariance(objective_of(model), dispersion=model.dispersion, **options)


@pytest.mark.parametrize("key", OPTIONS)
def test_standard_errors_are_those_of_statsmodels(model, key):
    covariance = covariance_of(model, **OPTIONS[key])
    np.testing.assert_allclose(ihvp.standard_errors(covariance), model[key], rtol=TOLERANCE)
    variances = np.diag(covariance.to_dense())
    np.testing.assert_allclose(variances, model[key] ** 2, rtol=2 * TOLERANCE)
    v = np.linspace(1, 2, variances.size)
    np.testing.assert_allclose(covariance @ v, covariance.to_dense() @ v, rtol=TOLERANCE)


def test_hc1_is_that_of_least_squares():
    model = models.model("OLS")
    covariance = covariance_of(model, kind="sandwich", correction=True)
    np.testing.assert_allclose(ihvp.standard_errors(covariance), model["HC1"], rtol=TOLERANCE)


def test_intervals_are_those_of_statsmodels(single):
    degrees = N - 3 if single.name == "OLS" else None
    found = ihvp.confidence_intervals(covariance_of(single), level=0.9, degrees_of_freedom=degrees)
    np.testing.assert_allclose(np.column_stack(found), single["intervals"], rtol=TOLERANCE)


def test_functions_of_the_parameters_are_those_of_statsmodels(single):
    w, gradient = single["params"], models.delta_gradient(single["params"])
    covariance = covariance_of(single)
    np.testing.assert_allclose(covariance.of(gradient=gradient), single["delta"], rtol=TOLERANCE)
    expected = np.sqrt(np.diag(single["delta"]))
    np.testing.assert_allclose(ihvp.standard_errors(covariance, gradient=gradient), expected, rtol=TOLERANCE)
    value = np.array(models.delta_function(w, np.exp))
    interval = ihvp.confidence_intervals(
        covariance, lambda w: np.array(models.delta_function(w, np.exp)), gradient=gradient
    )
    np.testing.assert_allclose(interval.upper - value, 1.959963984540054 * expected, rtol=TOLERANCE)
    np.testing.assert_allclose(interval.lower + interval.upper, 2 * value, rtol=1e-12)


def test_cooks_distance_and_dfbetas_are_those_of_statsmodels(single):
    cook, dfbetas = models.deletion(single, objective_of(single), covariance_of(single))
    np.testing.assert_allclose(cook, single["cook"], rtol=TOLERANCE)
    np.testing.assert_allclose(dfbetas, single["dfbetas"], rtol=TOLERANCE, atol=1e-9)


def test_the_outer_product_takes_the_place_of_the_hessian(single):
    objective = objective_of(single)
    found = ihvp.covariance(objective, "opg", dispersion=single.dispersion).to_dense()
    rows = objective.per_example_gradients() / single.dispersion
    np.testing.assert_allclose(found, np.linalg.inv(rows.T @ rows), rtol=1e-8)
