"""Kronecker factors of long passes: runs that are killed, and data that is spread over processes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import ihvp
from ihvp.errors import DataError, InvalidOption, StoreMismatch
from ihvp.kronecker.blocks import pack

MODEL = """
import os, signal, sys
import numpy as np, torch
from torch import nn
from torch.nn import functional
import ihvp

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3))
    def forward(self, x):
        return self.body(x)

torch.manual_seed(0)
net = Net().double()
x, y = torch.randn(60, 5).double(), torch.randint(0, 3, (60,))

def loss(outputs, batch):
    return functional.cross_entropy(outputs, batch[1])

def predict(net, batch):
    return net(batch[0])
"""

# The runs are forks, so that packages are loaded once.
KILLED = (
    MODEL
    + """
from ihvp.kronecker.file import FactorFile
path, last = sys.argv[1], 0
# Six batches in each of two passes: killed after the fourth of the first, and the third of the second.
for number in (4, 5):
    if (process := os.fork()) == 0:
        last = number
        break
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
kept, count = FactorFile.keep, 0
def keep(self, number, done, sums):
    global count
    self._due = 0.0
    kept(self, number, done, sums)
    count += 1
    if count == last:
        os.kill(os.getpid(), signal.SIGKILL)
FactorFile.keep = keep
objective = ihvp.Objective(loss, net, (x, y), batch_size=10, predict=predict)
found = ihvp.EKFAC(objective, fisher="mc", out=path)
assert count == 3
assert torch.equal(found.to_dense(), ihvp.EKFAC(objective, fisher="mc").to_dense())
again = ihvp.EKFAC(objective, fisher="mc", out=path)
assert torch.equal(found.to_dense(), again.to_dense()) and count == 3
"""
)


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    command = [sys.executable, "-c", KILLED, tmp_path / "factors.npz"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def objective(width=4, count=30, **options):
    torch.manual_seed(width)
    net = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)).double()
    x, y = torch.randn(count, 5).double(), torch.randint(0, 3, (count,))
    return ihvp.Objective(
        lambda f, b: functional.cross_entropy(f, b[1]),
        net,
        (x, y),
        batch_size=7,
        predict=lambda net, b: net(b[0]),
        **options,
    )


class Interrupted(Exception):
    pass


def test_a_run_of_something_else_is_refused(tmp_path, monkeypatch):
    from ihvp.kronecker.file import FactorFile

    def interrupt(self, number, done, sums):
        kept(self, number, done, sums)
        raise Interrupted

    o, path, kept = objective(), tmp_path / "factors.npz", FactorFile.keep
    monkeypatch.setattr(FactorFile, "keep", interrupt)
    with pytest.raises(ihvp.errors.LossFailed, match="Interrupted"):
        ihvp.KFAC(o, out=path)
    monkeypatch.undo()
    with pytest.raises(DataError, match="blocks"):
        ihvp.KFAC.load(path, o)  # not yet finished
    for finished in (False, True):
        if finished:
            ihvp.KFAC(o, out=path)
        for other, what in (
            (lambda: ihvp.KFAC(o, out=path, fisher="mc"), "fisher"),
            (lambda: ihvp.KFAC(o, out=path, kfac_approx="reduce"), "sharing"),
            (lambda: ihvp.EKFAC(o, out=path), "operator"),
            (lambda: ihvp.KFAC(objective(6), out=path), "parameters"),
            (
                lambda: ihvp.KFAC(o.on((torch.randn(30, 5).double(), torch.zeros(30).long())), out=path),
                "data",
            ),
            (lambda: ihvp.KFAC(o.on(o.batches.data, lambda f, b: (f**2).mean()), out=path), "loss"),
        ):
            with pytest.raises(StoreMismatch, match=what):
                other()
    kept = ihvp.KFAC.load(path, o)
    found, expected = pack(kept.blocks)[0], pack(ihvp.KFAC(o).blocks)[0]
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_file_of_another_ending_is_refused_before_any_work(monkeypatch, tmp_path):
    o = objective()
    monkeypatch.setattr(o, "predict", None)
    with pytest.raises(InvalidOption, match=r"out is .* ends in \.npz or \.safetensors"):
        ihvp.KFAC(o, out=tmp_path / "factors")


WORKER = (
    MODEL
    + """
folder = sys.argv[1]
whole = ihvp.Objective(loss, net, (x, y), batch_size=10, predict=predict)
kinds = {
    f"{cls.__name__} {fisher}": (cls, fisher)
    for cls in (ihvp.KFAC, ihvp.EKFAC) for fisher in ("exact", "mc", "empirical")
}
expected = {name: cls(whole, fisher=fisher).to_dense() for name, (cls, fisher) in kinds.items()}
rank = int(os.fork() == 0)  # so that packages are loaded once
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
part = slice(0, 20) if rank == 0 else slice(20, None)
mine = ihvp.Objective(loss, net, (x[part], y[part]), batch_size=10, predict=predict)
for name, (cls, fisher) in kinds.items():
    found = cls(mine, fisher=fisher)
    torch.testing.assert_close(found.to_dense(), expected[name], rtol=1e-10, atol=1e-13)
weighted = ihvp.Objective(
    lambda f, b: (functional.cross_entropy(f, b[1], reduction="none") * b[2]).sum() / b[2].sum(), net,
    (x[part], y[part], torch.full_like(y[part], rank).double()), predict=predict, weights=lambda b: b[2],
)
found = ihvp.EKFAC(weighted).to_dense()
torch.distributed.destroy_process_group()
alone = ihvp.Objective(loss, net, (x[20:], y[20:]), predict=predict)
torch.testing.assert_close(found, ihvp.EKFAC(alone).to_dense(), rtol=1e-10, atol=1e-13)
if rank == 0:
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""
)


def test_factors_are_those_of_all_processes(tmp_path):
    command = [sys.executable, "-c", WORKER, tmp_path]
    done = subprocess.run(command, timeout=180, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
