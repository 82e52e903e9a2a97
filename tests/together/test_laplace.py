"""One model in three frameworks has the same posterior, and that of dense algebra in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

import ihvp

N, PRECISION = 15, 0.4
rng = np.random.default_rng(0)
X, Y = rng.standard_normal((N, 4)), rng.integers(0, 3, N)
WEIGHTS = {"a": rng.standard_normal((4, 5)) / 2, "b": rng.standard_normal((5, 3))}


def in_torch():
    import torch

    def predict(w, batch):
        return torch.tanh(batch[0] @ w["a"]) @ w["b"]

    return lambda f, b: torch.nn.functional.cross_entropy(f, b[1]), predict, torch.tensor


def in_jax():
    import jax
    import jax.numpy as jnp

    def loss(f, b):
        return -jnp.take_along_axis(jax.nn.log_softmax(f), b[1][:, None], axis=1).mean()

    return loss, lambda w, batch: jnp.tanh(batch[0] @ w["a"]) @ w["b"], jnp.asarray


def in_tf():
    import tensorflow as tf

    def loss(f, b):
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=b[1], logits=f))

    def predict(w, batch):
        return tf.tanh(batch[0] @ w["a"]) @ w["b"]

    return loss, predict, tf.Variable


def dense():
    """The Jacobian, the root-free curvature of the outputs, and what follows, in the order a, b."""
    h = np.tanh(X @ WEIGHTS["a"])
    f = h @ WEIGHTS["b"]
    p = np.exp(f) / np.exp(f).sum(axis=1, keepdims=True)
    of_a = np.einsum("ni,nh,hc->ncih", X, 1 - h**2, WEIGHTS["b"]).reshape(N, 3, -1)
    of_b = np.einsum("nh,cd->nchd", h, np.eye(3)).reshape(N, 3, -1)
    J = np.concatenate([of_a, of_b], axis=2)
    curvature = np.einsum("nc,cd->ncd", p, np.eye(3)) - p[:, :, None] * p[:, None, :]
    precision = np.einsum("ncp,ncd,ndq->pq", J, curvature, J) + PRECISION * np.eye(35)
    w = np.concatenate([part.ravel() for part in WEIGHTS.values()])
    likelihood = np.log(p[np.arange(N), Y]).sum()
    ratio = np.linalg.slogdet(precision)[1] - 35 * np.log(PRECISION)
    return J @ np.linalg.inv(precision) @ J.transpose(0, 2, 1), likelihood - (PRECISION * w @ w + ratio) / 2


@pytest.fixture(scope="module")
def by_factors():
    return predicted(in_torch, ihvp.KFAC)


def predicted(framework, curvature):
    loss, predict, native = framework()
    weights = {name: native(value) for name, value in WEIGHTS.items()}
    objective = ihvp.Objective(loss, weights, (X, Y), predict=predict)
    laplace = ihvp.Laplace(objective, curvature(objective), prior_precision=PRECISION)
    found = laplace.log_marginal_likelihood()
    assert laplace.sample(2).shape == (35, 2)
    return laplace.predictive(), found


@pytest.mark.parametrize("framework", [in_torch, in_jax, in_tf])
def test_the_posterior_does_not_depend_on_the_framework(by_factors, framework):
    covariance, evidence = dense()
    predictive, found = predicted(framework, ihvp.GaussNewton)
    assert_allclose(predictive.covariance, covariance, rtol=1e-9, atol=1e-12)
    assert found.value == pytest.approx(evidence, rel=1e-12)
    if framework is in_tf:
        return  # its factors are compared in test_kronecker.py, and compiled for many seconds
    predictive, found = predicted(framework, ihvp.KFAC)
    assert_allclose(predictive.covariance, by_factors[0].covariance, rtol=1e-9, atol=1e-12)
    assert_allclose(predictive.probabilities(), by_factors[0].probabilities(), rtol=1e-9)
    assert found.value == pytest.approx(by_factors[1].value, rel=1e-12)
    assert found.slopes == pytest.approx(by_factors[1].slopes, rel=1e-9)
