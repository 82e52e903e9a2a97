"""The covariances of five regressions against statsmodels' own numbers, from gradients alone."""

from __future__ import annotations

import numpy as np
import pytest

import ihvp
from tests.statistics import models

TOLERANCE = 1e-6


@pytest.fixture(params=models.NAMES)
def model(request):
    return models.model(request.param)


def objective_of(model, w=None, **options):
    params = model["params"] if w is None else w
    gradient = models.gradient(model.name)
    with ihvp.use("numdiff", order=4):
        return ihvp.Objective(params=params, data=(models.X, model.y), grad=gradient, **options)


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("nonrobust", {}),
        ("HC0", {"kind": "sandwich"}),
        ("clustered", {"kind": "sandwich", "clusters": models.CLUSTERS}),
        ("clustered, corrected", {"kind": "sandwich", "clusters": models.CLUSTERS, "correction": True}),
    ],
)
def test_standard_errors_are_those_of_statsmodels(model, key, options):
    covariance = ihvp.covariance(objective_of(model), dispersion=model.dispersion, **options)
    np.testing.assert_allclose(ihvp.standard_errors(covariance), model[key], rtol=TOLERANCE)
