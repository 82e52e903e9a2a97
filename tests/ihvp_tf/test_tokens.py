"""Scores by token of a causal language model, beside a gradient for the loss of each token."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.testing import assert_allclose

import ihvp

pytestmark = pytest.mark.filterwarnings("ignore::ihvp.influence.NotAtOptimum")
WORDS, WIDTH, DAMPING, NONE = 6, 3, 0.1, -100


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    options = {"dtype": "float64"}
    tokens = keras.Input((None,), dtype="int64")
    h = keras.layers.Embedding(WORDS, WIDTH, mask_zero=True, **options)(tokens)
    h = h + keras.layers.Attention(**options)([h, h], use_causal_mask=True)
    return keras.Model(tokens, keras.layers.Dense(WORDS, **options)(h))


def predict(model, batch):
    return model(batch["tokens"])


def summed(outputs, batch):
    labels = batch["labels"]
    counts = labels != NONE
    each = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.where(counts, labels, 0), outputs)
    return tf.reduce_sum(tf.where(counts, each, 0))


def loss(outputs, batch):
    return summed(outputs, batch) / tf.reduce_sum(tf.cast(batch["labels"] != NONE, outputs.dtype))


def labelled(batch):
    return (np.asarray(batch["labels"]) != NONE).sum(1)


def texts(rng, lengths, longest, prompts):
    """Texts whose prompts, and whose padding, are not to be predicted."""
    places = np.arange(longest)
    tokens = rng.integers(1, WORDS, (len(lengths), longest)) * (places < np.array(lengths)[:, None])
    labels = np.pad(tokens[:, 1:], ((0, 0), (0, 1)))
    left_out = (labels == 0) | (places < np.array(prompts)[:, None] - 1)
    return {"tokens": tokens, "labels": np.where(left_out, NONE, labels)}


def test_scores_by_token_are_those_of_each_tokens_loss(model):
    rng = np.random.default_rng(0)
    batches = [texts(rng, [4, 3, 2], 4, [2, 1, 2]), texts(rng, [6, 4], 6, [3, 2])]  # one has no label
    test = texts(rng, [4, 3], 4, [1, 1])
    # Additivity is checked elsewhere, where it costs no compilation.
    objective = ihvp.Objective(loss, model, batches, predict=predict, weights=labelled, checks=False)
    root = rng.standard_normal((objective.num_params, objective.num_params))
    matrix = root @ root.T / len(root)
    influence = ihvp.Influence(objective, DAMPING, ihvp.Direct(), curvature=ihvp.Dense(matrix))
    found, scores = influence.scores_by("token", test), influence.scores(test)

    @tf.function(reduce_retracing=True)
    def gradient(tokens, labels):
        batch = {"tokens": tokens, "labels": labels}
        parts = tf.gradients(summed(predict(model, batch), batch), model.trainable_variables)
        return tf.concat([tf.reshape(tf.convert_to_tensor(part), [-1]) for part in parts], 0)

    weight = sum(int(labelled(batch).sum()) for batch in batches)
    slopes = [
        gradient(test["tokens"][j : j + 1], test["labels"][j : j + 1]).numpy() / labelled(test)[j]
        for j in range(2)
    ]
    x = np.linalg.solve(matrix + DAMPING * np.eye(len(matrix)), np.stack(slopes).T)
    expected, number = np.zeros((2, 5, 6)), 0
    for batch in batches:
        for i in range(len(batch["tokens"])):
            for t in np.flatnonzero(batch["labels"][i] != NONE):
                alone = np.where(np.arange(len(batch["labels"][i])) == t, batch["labels"][i], NONE)
                expected[:, number, t] = (
                    gradient(batch["tokens"][i : i + 1], alone[None]).numpy() @ x / weight
                )
            number += 1
    assert_allclose(found, expected, rtol=0, atol=1e-8 * np.abs(expected).max())
    assert_allclose(np.asarray(found).sum(axis=2), scores, rtol=0, atol=1e-10 * np.abs(scores).max())
    assert not np.asarray(found)[expected == 0].any()

    total = sum(summed(predict(model, batch), batch) for batch in batches)
    assert_allclose(objective.value(), total / weight, rtol=1e-12)
