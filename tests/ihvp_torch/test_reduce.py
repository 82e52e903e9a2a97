from __future__ import annotations

import subprocess
import sys

import torch

WORKER = """
import sys, torch
from ihvp_torch import TorchBackend
rank, store = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
backend = TorchBackend()
vector = torch.tensor([1.0, 10.0]) * (rank + 1)
assert backend.reduce(vector).tolist() == [3.0, 30.0]
assert vector.tolist() == [rank + 1.0, 10.0 * (rank + 1)]
block = (torch.arange(6.0).reshape(3, 2) * (rank + 1)).T
assert backend.reduce(block).tolist() == (3 * torch.arange(6.0).reshape(3, 2)).T.tolist()
torch.distributed.destroy_process_group()
"""


def test_one_process_gets_its_vector_back(backend):
    vector = torch.ones(3)
    assert backend.reduce(vector) is vector


def test_vectors_and_blocks_are_summed_over_processes(tmp_path):
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(tmp_path / "store")])
        for rank in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
