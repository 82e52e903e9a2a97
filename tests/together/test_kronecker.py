"""One model in three frameworks has the same factors."""

from __future__ import annotations

import numpy as np
import pytest

import ihvp
from ihvp.kronecker.dual import dual_inverse

pytestmark = pytest.mark.filterwarnings("ignore::ihvp.influence.NotAtOptimum")

# More than a layer has inputs: where factors have repeated eigenvalues, their eigenvectors are not unique.
COUNT = 24
rng = np.random.default_rng(0)
IMAGES, LABELS = rng.standard_normal((COUNT, 6, 6, 2)), rng.integers(0, 3, COUNT)
WEIGHTS = {
    "kernel": rng.standard_normal((3, 3, 2, 4)) / 4,
    "bias": rng.standard_normal(4) / 4,
    "dense": rng.standard_normal((4, 5)) / 2,
    "offset": rng.standard_normal(5) / 4,
    "out": rng.standard_normal((5, 3)) / 2,
}


def in_torch():
    import torch
    from torch.nn.functional import conv2d, cross_entropy

    # torch keeps the axes of weights in another order.
    w = {name: torch.tensor(value) for name, value in WEIGHTS.items()}
    w["kernel"] = w["kernel"].permute(3, 2, 0, 1).contiguous()
    w["dense"], w["out"] = w["dense"].T.contiguous(), w["out"].T.contiguous()

    def predict(w, batch):
        h = torch.tanh(conv2d(batch[0].permute(0, 3, 1, 2), w["kernel"], w["bias"], stride=2))
        h = torch.tanh(torch.nn.functional.linear(h.mean((2, 3)), w["dense"], w["offset"]))
        return torch.nn.functional.linear(h, w["out"])

    return lambda f, b: cross_entropy(f, b[1]), w, predict


def in_jax():
    import jax
    import jax.numpy as jnp

    w = {name: jnp.asarray(value) for name, value in WEIGHTS.items()}

    def predict(w, batch):
        h = jax.lax.conv_general_dilated(
            batch[0], w["kernel"], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        h = jnp.tanh(jnp.tanh(h + w["bias"]).mean((1, 2)) @ w["dense"] + w["offset"])
        return h @ w["out"]

    def loss(f, b):
        return -jnp.take_along_axis(jax.nn.log_softmax(f), b[1][:, None], axis=1).mean()

    return loss, w, predict


def in_tf():
    import tensorflow as tf

    w = {name: tf.Variable(value, name=name) for name, value in WEIGHTS.items()}

    def predict(w, batch):
        h = tf.nn.bias_add(tf.nn.conv2d(batch[0], w["kernel"], 2, "VALID"), w["bias"])
        h = tf.reduce_mean(tf.tanh(h), axis=[1, 2]) @ w["dense"]
        return tf.tanh(tf.nn.bias_add(h, w["offset"])) @ w["out"]

    def loss(f, b):
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=b[1], logits=f))

    return loss, w, predict


@pytest.fixture(scope="module")
def reference():
    return measured(in_torch)


def measured(framework):
    """Numbers that do not depend on the order of parameters, for each kind of factors."""
    loss, params, predict = framework()
    objective = ihvp.Objective(loss, params, (IMAGES, LABELS), predict=predict)
    found = {}
    for cls in (ihvp.KFAC, ihvp.EKFAC):
        for sharing in ("expand", "reduce"):
            operator = cls(objective, kfac_approx=sharing)
            assert "without a layer" not in operator.report(), operator.report()
            found[cls.__name__, sharing] = np.array(
                [operator.trace(), operator.frobenius_norm(), operator.logdet(0.1)]
            )
    # The same batch once more, so that nothing is compiled for another shape.
    scores = ihvp.Influence(objective, 0.1, curvature=operator).scores((IMAGES, LABELS))
    found["scores", sharing] = np.asarray(scores)
    # The dense layers alone share no weights between places: solved in the space of the outputs.
    objective = ihvp.Objective(
        loss, params, (IMAGES, LABELS), predict=predict, only=lambda name: name not in ("kernel", "bias")
    )
    operator, solver = ihvp.GaussNewton(objective), ihvp.Auto(rtol=1e-10)
    assert dual_inverse(operator, 0.1, solver.rtol) is not None
    scores = ihvp.Influence(objective, 0.1, solver, curvature=operator).scores((IMAGES, LABELS))
    assert scores.residual <= solver.rtol
    found["space of the outputs", ""] = np.asarray(scores)
    return found


@pytest.mark.parametrize("framework", [in_jax, in_tf])
def test_factors_do_not_depend_on_the_framework(reference, framework):
    found = measured(framework)
    for kind, numbers in reference.items():
        np.testing.assert_allclose(found[kind], numbers, rtol=1e-8, atol=1e-10, err_msg=str(kind))


def test_they_are_those_of_gauss_newton(reference):
    loss, params, predict = in_torch()
    objective = ihvp.Objective(loss, params, (IMAGES, LABELS), predict=predict)
    trace = float(np.trace(ihvp.GaussNewton(objective).to_dense().numpy()))
    assert reference["EKFAC", "expand"][0] == pytest.approx(trace, rel=1e-10)
