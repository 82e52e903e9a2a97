"""Scores by token of a causal language model, beside a gradient for the loss of each token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose

import ihvp

pytestmark = pytest.mark.filterwarnings("ignore::ihvp.influence.NotAtOptimum")
WORDS, WIDTH, DAMPING, NONE = 6, 3, 0.1, -100


@pytest.fixture
def params(rng):
    shapes = {"embed": (WORDS, WIDTH), "project": (WIDTH, 3 * WIDTH), "head": (WIDTH, WORDS)}
    return {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}


def predict(params, batch):
    h = params["embed"][batch["tokens"]]
    q, k, v = jnp.split(h @ params["project"], 3, axis=-1)
    seen = jnp.tril(jnp.ones((h.shape[1], h.shape[1]), bool)) & (batch["tokens"] > 0)[:, None]
    scores = jnp.where(seen | jnp.eye(h.shape[1], dtype=bool), q @ k.mT / WIDTH**0.5, -jnp.inf)
    return (h + jax.nn.softmax(scores) @ v) @ params["head"]


def summed(outputs, batch):
    counts = batch["labels"] != NONE
    picked = jnp.take_along_axis(outputs, jnp.where(counts, batch["labels"], 0)[..., None], -1)[..., 0]
    return jnp.sum(jnp.where(counts, jax.nn.logsumexp(outputs, -1) - picked, 0))


def loss(outputs, batch):
    return summed(outputs, batch) / labelled(batch).sum()


def labelled(batch):
    return (batch["labels"] != NONE).sum(1)


def texts(rng, lengths, longest, prompts):
    """Texts whose prompts, and whose padding, are not to be predicted."""
    places = np.arange(longest)
    tokens = rng.integers(1, WORDS, (len(lengths), longest)) * (places < np.array(lengths)[:, None])
    labels = np.pad(tokens[:, 1:], ((0, 0), (0, 1)))
    left_out = (labels == 0) | (places < np.array(prompts)[:, None] - 1)
    return {"tokens": tokens, "labels": np.where(left_out, NONE, labels)}


@jax.jit
def token_gradient(params, batch):
    return ravel_pytree(jax.grad(lambda params: summed(predict(params, batch), batch))(params))[0]


def test_scores_by_token_are_those_of_each_tokens_loss(params, rng):
    batches = [texts(rng, [4, 3, 2], 4, [2, 1, 2]), texts(rng, [6, 4], 6, [3, 2])]  # one has no label
    test = texts(rng, [4, 3], 4, [1, 1])
    # Additivity is checked elsewhere, where it costs no compilation.
    objective = ihvp.Objective(loss, params, batches, predict=predict, weights=labelled, checks=False)
    root = rng.standard_normal((objective.num_params, objective.num_params))
    matrix = root @ root.T / len(root)
    influence = ihvp.Influence(objective, DAMPING, ihvp.Direct(), curvature=ihvp.Dense(jnp.asarray(matrix)))
    found, scores = influence.scores_by("token", test), influence.scores(test)

    weight = sum(int(labelled(batch).sum()) for batch in batches)
    slopes = [
        token_gradient(params, {key: array[j : j + 1] for key, array in test.items()}) / labelled(test)[j]
        for j in range(2)
    ]
    x = np.linalg.solve(matrix + DAMPING * np.eye(len(matrix)), np.stack(slopes).T)
    expected, number = np.zeros((2, 5, 6)), 0
    for batch in batches:
        for i in range(len(batch["tokens"])):
            for t in np.flatnonzero(batch["labels"][i] != NONE):
                alone = np.where(np.arange(len(batch["labels"][i])) == t, batch["labels"][i], NONE)
                one = {"tokens": batch["tokens"][i : i + 1], "labels": alone[None]}
                expected[:, number, t] = token_gradient(params, one) @ x / weight
            number += 1
    assert_allclose(found, expected, rtol=0, atol=1e-8 * np.abs(expected).max())
    assert_allclose(np.asarray(found).sum(axis=2), scores, rtol=0, atol=1e-10 * np.abs(scores).max())
    assert not np.asarray(found)[expected == 0].any()

    total = sum(summed(predict(params, batch), batch) for batch in batches)
    assert_allclose(objective.value(), total / weight, rtol=1e-12)
