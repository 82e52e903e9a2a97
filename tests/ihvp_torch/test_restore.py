"""Parameters from files of torch: modules with buffers and tied weights, and nothing that runs code."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ihvp
from ihvp.errors import DataError, ParameterError


class Tied(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(5, width), nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 5)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.norm(self.embedding(x)))


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture
def trained():
    torch.manual_seed(0)
    model = Tied().eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*other.parameters(), other.norm.running_mean):
            tensor.add_(1.0)
    other.norm.num_batches_tracked.add_(3)
    return model, other


DATA = torch.arange(4), torch.arange(1, 5)


def saved(other, tmp_path):
    state = other.state_dict()
    untied = {name: value for name, value in state.items() if name != "head.weight"}
    torch.save(state, tmp_path / "state.pt")
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "lightning.ckpt")
    save_file(untied, tmp_path / "weights.safetensors")
    np.savez(tmp_path / "arrays.npz", **{name: value.numpy() for name, value in state.items()})
    files = ("state.pt", "lightning.ckpt", "weights.safetensors", "arrays.npz")
    return [other, state, *(tmp_path / name for name in files)]


def test_each_form_gives_the_gradients_of_the_checkpoint(trained, tmp_path):
    model, other = trained
    objective = ihvp.Objective(loss, model, DATA)
    before = {name: (value, value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    expected = ihvp.Objective(loss, other, DATA).gradient()
    for checkpoint in saved(other, tmp_path):
        method = ihvp.TracIn(objective, [checkpoint])
        found = method._models[0][1].objective
        assert torch.equal(found.gradient(), expected)
        assert found.params.head.weight is found.params.embedding.weight
        assert found.params.norm.num_batches_tracked == 3
    for name, value in model.state_dict(keep_vars=True).items():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])


def test_other_architectures_and_pickled_code(trained, tmp_path):
    objective = ihvp.Objective(loss, trained[0], DATA)
    torch.save(trained[0], tmp_path / "module.pt")
    torch.save(Tied(4).state_dict(), tmp_path / "wider.pt")
    (tmp_path / "torn.pt").write_bytes(b"torn")
    for name, error, message in (
        ("module.pt", DataError, "pickled code is never run"),
        ("torn.pt", DataError, "cannot be read"),
        ("wider.pt", ParameterError, r"embedding\.weight \(found \(5, 4\), expected \(5, 3\)\)"),
    ):
        with pytest.raises(error, match=message):
            ihvp.TracIn(objective, [tmp_path / name])
    with pytest.raises(ParameterError, match="a file, a module or its state dictionary"):
        ihvp.TracIn(objective, [[torch.zeros(3)]])
