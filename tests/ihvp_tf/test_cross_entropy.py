"""Second derivatives of the cross-entropy by its labels, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import ops


@pytest.fixture
def labels():
    return np.random.default_rng(0).dirichlet(np.ones(3), size=4)


def loss(p, labels):
    return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels, p[0]))


def test_derivative_by_soft_labels_is_whole(backend, labels):
    logits, v = np.random.default_rng(1).standard_normal((2, 4, 3))
    (found,) = tf.nest.flatten(backend.input_derivatives(loss, [tf.Variable(logits)], labels, v.ravel()))
    # The gradient is (softmax − labels) / 4.
    np.testing.assert_allclose(found, -v / 4, rtol=1e-12)


def test_labels_may_depend_on_the_parameters(backend):
    # The entropy of a softmax.
    def entropy(p, _):
        return tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(p[0]), p[0])

    def by_hand(p, _):
        return -tf.reduce_sum(tf.nn.softmax(p[0]) * tf.nn.log_softmax(p[0]))

    w = [tf.Variable(np.array([0.5, -0.25, 2.0]))]
    expected = backend.hvp(by_hand, w, None, np.eye(3))
    np.testing.assert_allclose(backend.hvp(entropy, w, None, np.eye(3)), expected, rtol=0, atol=1e-12)
    traced = tf.function(lambda x: tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(x), x))
    with tf.GradientTape() as tape:
        tape.watch(w)
        value = traced(w[0])
    tape.gradient(value, w)
    product = backend.hvp(lambda p, _: traced(p[0]), w, None, np.eye(3))
    np.testing.assert_allclose(product, expected, rtol=0, atol=1e-12)


def test_registry_is_as_it_was(backend, labels):
    before = ops.gradient_registry.lookup("SoftmaxCrossEntropyWithLogits")
    backend.hvp(loss, [tf.Variable(np.zeros((4, 3)))], labels, np.ones(12))
    assert ops.gradient_registry.lookup("SoftmaxCrossEntropyWithLogits") is before
