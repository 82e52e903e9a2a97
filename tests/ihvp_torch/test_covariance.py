"""The covariances of five regressions against statsmodels' own numbers, with exact products."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ihvp
from tests.statistics import models
from tests.statistics.models import CLASSES, CLUSTERS, X

TOLERANCE = 1e-8


def loss_of(name):
    def loss(w, batch):
        x, y = batch
        if name == "MNLogit":
            scores = torch.cat([torch.zeros(len(y), 1, dtype=x.dtype), x @ w.reshape(CLASSES - 1, -1).T], 1)
            return torch.nn.functional.cross_entropy(scores, y.long())
        eta = x @ w
        return {
            "OLS": lambda: (eta - y) ** 2 / 2,
            "Logit": lambda: torch.nn.functional.softplus(eta) - y * eta,
            "Poisson": lambda: torch.exp(eta) - y * eta,
            "Gamma": lambda: eta + y * torch.exp(-eta),
        }[name]().mean()

    return loss


@pytest.fixture(params=models.NAMES)
def model(request):
    return models.model(request.param)


@pytest.fixture
def objective(model):
    data = torch.from_numpy(X), torch.from_numpy(model.y)
    return ihvp.Objective(loss_of(model.name), torch.from_numpy(model["params"]), data)


def test_standard_errors_are_those_of_statsmodels(model, objective):
    for key, options in {
        "nonrobust": {"dispersion": model.dispersion},
        "HC0": {"kind": "sandwich"},
        "clustered": {"kind": "sandwich", "clusters": CLUSTERS},
        "clustered, corrected": {"kind": "sandwich", "clusters": CLUSTERS, "correction": True},
    }.items():
        found = ihvp.standard_errors(ihvp.covariance(objective, **options))
        assert isinstance(found, torch.Tensor)
        np.testing.assert_allclose(found, model[key], rtol=TOLERANCE, err_msg=key)


def test_cooks_distance_and_dfbetas_are_those_of_statsmodels(model, objective):
    if model.name == "MNLogit":  # has no one linear predictor
        return
    covariance = ihvp.covariance(objective, dispersion=model.dispersion)
    cook, dfbetas = models.deletion(model, objective, covariance)
    np.testing.assert_allclose(cook, model["cook"], rtol=TOLERANCE)
    np.testing.assert_allclose(dfbetas, model["dfbetas"], rtol=TOLERANCE, atol=1e-11)


def test_single_precision_is_enough_for_regressors_of_unlike_units():
    model, units = models.model("Logit"), np.array([1.0, 1.0, 1e4])
    params, x, y = (torch.from_numpy(part).float() for part in (model["params"] / units, X * units, model.y))
    found = ihvp.standard_errors(ihvp.covariance(ihvp.Objective(loss_of("Logit"), params, (x, y))))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy() * units, model["nonrobust"], rtol=1e-4)


def test_functions_of_the_parameters_are_differentiated(model, objective):
    if model.name == "MNLogit":
        return
    covariance, w = ihvp.covariance(objective, dispersion=model.dispersion), model["params"]
    function = lambda w: torch.stack(models.delta_function(w, torch.exp))  # noqa: E731
    np.testing.assert_allclose(covariance.of(function), model["delta"], rtol=TOLERANCE)
    value, expected = np.array(models.delta_function(w, np.exp)), np.sqrt(np.diag(model["delta"]))
    interval = ihvp.confidence_intervals(covariance, function)
    np.testing.assert_allclose(interval.upper, value + 1.959963984540054 * expected, rtol=TOLERANCE)
    single = ihvp.standard_errors(covariance, lambda w: function(w)[1])
    for wrong in (lambda w: 3.0, lambda w: function(w)[:0], lambda w: function(w).detach().numpy()):
        with pytest.raises(ihvp.errors.InvalidOption, match="function"):
            covariance.of(wrong)
    assert single.shape == ()
    np.testing.assert_allclose(single, expected[1], rtol=TOLERANCE)


def test_a_module_stays_as_it_is_and_its_standard_errors_have_its_names():
    model = models.model("Logit")
    module = torch.nn.Linear(2, 1, dtype=torch.float64)
    with torch.no_grad():
        module.bias.copy_(torch.tensor(model["params"][:1]))
        module.weight.copy_(torch.tensor(model["params"][None, 1:]))
    before = {name: (value, value.clone()) for name, value in module.state_dict().items()}

    def loss(module, batch):
        eta = module(batch[0])[:, 0]
        return torch.nn.functional.binary_cross_entropy_with_logits(eta, batch[1])

    data = torch.from_numpy(X[:, 1:].copy()), torch.from_numpy(model.y)
    covariance = ihvp.covariance(ihvp.Objective(loss, module, data))
    found = ihvp.standard_errors(covariance)
    assert list(found) == ["weight", "bias"]
    np.testing.assert_allclose(found["bias"], model["nonrobust"][:1], rtol=TOLERANCE)
    np.testing.assert_allclose(found["weight"], model["nonrobust"][None, 1:], rtol=TOLERANCE)
    ratio = ihvp.standard_errors(covariance, lambda module: module.weight[0, 0] * module.bias[0])
    np.testing.assert_allclose(ratio**2, model["delta"][1, 1], rtol=TOLERANCE)
    for name, value in module.state_dict().items():
        assert value.data_ptr() == before[name][0].data_ptr()
        assert torch.equal(value, before[name][1])
    assert module.weight.grad is None
