"""Indices whose rows a curvature of Kronecker factors has gone into: what may stand in their way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.nn.functional import cross_entropy

import ihvp
from ihvp.errors import InvalidOption

DAMPING = 0.1
pytestmark = pytest.mark.filterwarnings("ignore::ihvp.influence.NotAtOptimum")


def random(*shape):
    return torch.tensor(np.random.default_rng(sum(shape)).standard_normal(shape))


def labels(count):
    return torch.arange(count) % 3


def objective(net=None, data=None):
    net = nn.Linear(4, 3).double() if net is None else net
    data = (random(9, 4), labels(9)) if data is None else data
    return ihvp.Objective(
        lambda outputs, batch: cross_entropy(outputs, batch[1]),
        net,
        data,
        predict=lambda net, batch: net(batch[0]),
    )


def build(target, out, kind, K, dim=10):
    projection = ihvp.Projection(np.int64(dim), kind, np.int64(1))
    return ihvp.build_index(target, out, projection, "float64", curvature=K, damping=DAMPING)


@pytest.mark.parametrize("kind", ["eigen", "sparse"])
def test_examples_that_weigh_nothing_need_no_gradient(kind, tmp_path):
    def loss(outputs, batch):
        losses = cross_entropy(outputs.flatten(0, 1), batch[1].clamp(min=0).flatten(), reduction="none")
        asked = batch[1] >= 0
        return (losses.view(asked.shape) * asked).sum() / asked.sum()

    def part(count):
        return random(count, 5, 3), labels(5 * count).view(count, 5)

    data = [part(4), part(3), (random(2, 5, 3), torch.full((2, 5), -1))]
    target = ihvp.Objective(
        loss,
        nn.Linear(3, 4).double(),
        data,
        predict=lambda net, batch: net(batch[0]),
        weights=lambda batch: (batch[1] >= 0).sum(1),
    )
    K = ihvp.EKFAC(target)
    scores = build(target, tmp_path, kind, K, dim=16).scores(part(2))
    exact = ihvp.Influence(target, DAMPING, curvature=K)
    assert np.all(np.asarray(scores)[:, 7:] == 0)
    assert np.all(np.asarray(exact.self_influence())[7:] == 0)
    if kind == "eigen":
        assert_allclose(scores, exact.scores(part(2)), rtol=1e-8, atol=1e-12)


def test_an_array_that_is_a_layer_in_part(tmp_path):
    def predict(params, batch):
        W = params["W"]
        return torch.tanh(batch[0] @ W[:4] + W[4] * W[5]) @ params["o"]

    target = objective({"W": random(6, 4), "o": random(4, 3)})
    target = ihvp.Objective(
        target.output_loss, target.params, (random(9, 4), labels(9)), predict=predict, backend="torch"
    )
    K, test = ihvp.EKFAC(target), (random(2, 4), labels(2))
    assert len({block.name for block in K.blocks}) == len(K.blocks)
    index = build(target, tmp_path, "eigen", K, dim=target.num_params)
    assert_allclose(
        index.scores(test), ihvp.Influence(target, DAMPING, curvature=K).scores(test), rtol=1e-8, atol=1e-12
    )
    assert sum(len(np.asarray(part)) for part in index.scores_by("layer", test).values()) == 2 * len(K.blocks)


@pytest.mark.parametrize("kind", ["eigen", "sparse"])
def test_factors_from_their_file_are_the_same(kind, tmp_path):
    target, test = objective(), (random(2, 4), labels(2))
    found = []
    for _ in range(2):
        K = ihvp.EKFAC(target, out=tmp_path / "factors.npz")
        found.append(build(target, tmp_path / "index", kind, K).scores(test))
    assert_allclose(*found)


@pytest.mark.parametrize("kind", ["eigen", "sparse"])
def test_factors_of_other_parameters_are_refused_before_anything_is_written(kind, tmp_path):
    K = ihvp.EKFAC(objective(nn.Linear(4, 3).double()))
    with pytest.raises(InvalidOption, match="made at the parameters that the objective has"):
        build(objective(nn.Linear(4, 3).double()), tmp_path / "index", kind, K)
    assert not (tmp_path / "index").exists()
