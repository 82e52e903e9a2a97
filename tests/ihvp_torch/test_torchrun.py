"""``torchrun -m ihvp influence``: what two processes write is what one answers."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

import ihvp

TRAINING = """
import torch
import ihvp

torch.manual_seed(0)
x, y = torch.randn(9, 3, dtype=torch.float64), torch.randint(2, (9,))
net = torch.nn.Linear(3, 2).double()
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
test_data = x[:6] + 0.1, y[:6]

def loss(net, batch):
    return torch.nn.functional.cross_entropy(net(batch[0]), batch[1])

objective = ihvp.Objective(loss, net, loader)
"""


def test_two_processes_write_what_one_answers(tmp_path, recwarn):
    (tmp_path / "training.py").write_text(TRAINING)
    launcher = "-m torch.distributed.run --nproc-per-node 2 --standalone -m ihvp influence"
    asked = "training:objective --test training:test_data --damping 0.1 --solver direct --top 9 --out found"
    command = [sys.executable, *launcher.split(), *asked.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, timeout=120, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Test point 0") == 1
    assert done.stdout.count("All scores are in") == 1
    assert done.stderr.count("Warning: The parameters are not at an optimum") == 1

    namespace = {}
    exec(TRAINING, namespace)
    influence = ihvp.Influence(namespace["objective"], 0.1, ihvp.Direct())
    scores, top = influence.scores(namespace["test_data"]), influence.top_k(namespace["test_data"], 9)
    np.testing.assert_allclose(np.load(tmp_path / "found" / "scores.npy"), scores.values, rtol=0, atol=1e-8)
    rows = np.loadtxt(tmp_path / "found" / "top.csv", delimiter=",", skiprows=1)
    np.testing.assert_array_equal(rows[:, 2], top.indices.ravel())
    np.testing.assert_allclose(rows[:, 3], top.scores.ravel(), rtol=0, atol=1e-8)
