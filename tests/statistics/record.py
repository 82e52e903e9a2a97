"""Writes recorded.json: ``pip install statsmodels==0.15.0`` and ``python -m tests.statistics.record``."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import statsmodels
import statsmodels.api as sm
from statsmodels.stats._delta_method import NonlinearDeltaCov
from statsmodels.stats.outliers_influence import MLEInfluence

from tests.statistics.models import CLUSTERS, NAMES, TARGETS, X, delta_function, delta_gradient


def fit(name, **covariance):
    y, newton = TARGETS[name], {"method": "newton", "tol": 1e-15, "maxiter": 100, "disp": False}
    if name == "OLS":
        return sm.OLS(y, X).fit(**covariance)
    if name == "Gamma":  # newton, whose covariance is that of the observed information
        return sm.GLM(y, X, family=sm.families.Gamma(sm.families.links.Log())).fit(**newton, **covariance)
    kind = {"Logit": sm.Logit, "Poisson": sm.Poisson, "MNLogit": sm.MNLogit}[name]
    return kind(y, X).fit(**newton, **covariance)


def flat(values):
    return np.asarray(values).T.reshape(-1).tolist()  # a column for each class of MNLogit


def numbers(name):
    groups = {"groups": np.unique(CLUSTERS, return_inverse=True)[1]}
    plain = fit(name)
    found = {
        "params": flat(plain.params),
        "dispersion": float(plain.scale) if name in ("OLS", "Gamma") else 1.0,
        "nonrobust": flat(plain.bse),
        "HC0": flat(fit(name, cov_type="HC0").bse),
        "HC1": flat(fit(name, cov_type="HC1").bse),
        "clustered": flat(fit(name, cov_type="cluster", cov_kwds={**groups, "use_correction": False}).bse),
        "clustered, corrected": flat(
            fit(name, cov_type="cluster", cov_kwds={**groups, "use_correction": True}).bse
        ),
    }
    if name != "MNLogit":
        # That of GLM mixes the observed curvature with expected residuals, and leaves the scale out.
        influence = MLEInfluence(plain) if name == "Gamma" else plain.get_influence()
        found["cook"] = influence.cooks_distance[0].tolist()
        found["dfbetas"] = influence.dfbetas.tolist()
        found["intervals"] = plain.conf_int(0.1).tolist()
        delta = NonlinearDeltaCov(
            lambda w: np.array(delta_function(w, np.exp)),
            plain.params,
            plain.cov_params(),
            lambda w: delta_gradient(w).T,
        )
        found["delta"] = delta.cov().tolist()
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    record = {"statsmodels": statsmodels.__version__, "models": {name: numbers(name) for name in NAMES}}
    Path(__file__).with_name("recorded.json").write_text(json.dumps(record) + "\n")
