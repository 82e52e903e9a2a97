"""Standard errors and the delta method in JAX and TensorFlow, against statsmodels."""

from __future__ import annotations

import numpy as np
import pytest

import ihvp
from tests.statistics import models
from tests.statistics.models import X


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
def test_functions_of_the_parameters_are_differentiated(make):
    model = models.model("Logit")
    loss, params, function = make(model["params"])
    # What the checks would compile is tested elsewhere.
    covariance = ihvp.covariance(ihvp.Objective(loss, params, (X, model.y), checks=False))
    (found,) = _leaves(ihvp.standard_errors(covariance))
    np.testing.assert_allclose(found, model["nonrobust"], rtol=1e-8)
    np.testing.assert_allclose(covariance.of(function), model["delta"], rtol=1e-8)


def _leaves(tree):
    return tree.values() if isinstance(tree, dict) else tree
