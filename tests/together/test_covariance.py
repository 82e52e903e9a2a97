"""Robust standard errors and the delta method, the same from each framework."""

from __future__ import annotations

import numpy as np
import pytest

import ihvp
from tests.statistics import models
from tests.statistics.models import CLUSTERS, X


def jax_model(w):
    import jax.numpy as jnp

    def loss(w, batch):
        eta = batch[0] @ w["w"]
        return jnp.mean(jnp.logaddexp(0.0, eta) - batch[1] * eta)

    return loss, {"w": jnp.asarray(w)}, lambda w: jnp.stack(models.delta_function(w["w"], jnp.exp))


def tf_model(w):
    import tensorflow as tf

    def loss(w, batch):
        eta = tf.linalg.matvec(batch[0], w[0])
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(batch[1], eta))

    return loss, [tf.Variable(w)], lambda w: tf.stack(models.delta_function(w[0], tf.exp))


@pytest.mark.parametrize("make", [jax_model, tf_model])
def test_the_clustered_sandwich_and_functions_of_the_parameters(make):
    model = models.model("Logit")
    loss, params, function = make(model["params"])
    covariance = ihvp.covariance(ihvp.Objective(loss, params, (X, model.y)), "sandwich", clusters=CLUSTERS)
    errors = ihvp.standard_errors(covariance)
    (found,) = errors.values() if isinstance(errors, dict) else errors
    np.testing.assert_allclose(found, model["clustered"], rtol=1e-8)
    J = models.delta_gradient(model["params"])
    np.testing.assert_allclose(covariance.of(function), covariance.of(gradient=J), rtol=1e-8)
