"""A product over the processes of ``torch.distributed``: its time beside one process, and what it sends.

Each process has one thread and an equal part of 50,000 made examples, P = 669,706, in batches of 1,000 (gloo,
on one machine). A slower network is simulated: each sum waits first. What the product then takes is held
against the sum of what was measured without, and the wait.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ihvp
from tests.benchmarks.models import TorchModel
from tests.benchmarks.problems import made
from tests.benchmarks.rows import Case, Row, seconds

_EXAMPLES, _BATCH, _ROUNDS, _TURNS = 50_000, 1_000, 2, 2
_WAIT = 1.0


def measure(device: str) -> list[Row]:
    """The rows; one process and two take turns."""
    found: dict[int, list[Any]] = {1: [], 2: []}
    for _ in range(_TURNS):
        for count, measured in found.items():
            measured.append(_run(count))
    alone, together = (
        {name: float(np.median([each[name] for each in measured])) for name in measured[0]}
        for measured in found.values()
    )
    size = int(alone["size"])
    what = f"H v, P = {size:,}, N = {_EXAMPLES:,}, two processes"
    foretold = together["time"] + _WAIT
    return [
        Row(
            what=f"{what} beside one, how many times as fast",
            ours=seconds(together["time"]),
            peer="one process",
            beside=seconds(alone["time"]),
            value=alone["time"] / together["time"],
            low=1.7,
            high=2.2,
        ),
        Row(
            what=f"{what}, numbers that each sends to a sum",
            ours=f"{together['numbers']:,.0f} in {together['sums']:.0f} sum",
            peer="P",
            beside=f"{size:,}",
            value=together["numbers"] / size,
            high=1.05,
        ),
        Row(
            what=f"{what}, each sum {_WAIT:g} s late",
            ours=seconds(together["late"]),
            peer="foretold",
            beside=seconds(foretold),
            value=together["late"] / foretold,
            low=0.9,
            high=1.1,
        ),
        Row(
            what=f"{what}, the sum alone",
            ours=seconds(together["sum"]),
            peer="the product",
            beside=seconds(together["time"]),
            value=together["sum"] / together["time"],
        ),
    ]


def _run(count: int) -> Any:
    """What the first of so many processes has measured."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.benchmarks.processes", folder, str(count)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        running = [
            subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE, text=True)
            for rank in range(count)
        ]
        told = [process.communicate()[1] for process in running]
        if any(process.returncode for process in running):
            raise RuntimeError("\n".join(told))
        return json.loads(Path(folder, "measured.json").read_text())


def main(folder: str, count: int, rank: int) -> None:
    """One process: the median times of a product, of one with late sums, and of a sum; what it sends."""
    import torch

    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=count)
    problem = made(784, 512, 512, 10, rows=_EXAMPLES)
    model, part = TorchModel(problem), slice(rank * _EXAMPLES // count, (rank + 1) * _EXAMPLES // count)
    batches = zip(*(array[part].split(_BATCH) for array in model.batch), strict=True)
    H, v = ihvp.Hessian(model.objective(list(batches))), model.native(problem.directions())
    vector, sent, send = v.clone(), list[int](), torch.distributed.all_reduce

    def counted(total: Any, **options: Any) -> Any:
        sent.append(total.numel())
        return send(total, **options)

    def late(total: Any, **options: Any) -> Any:
        time.sleep(_WAIT)
        return send(total, **options)

    H @ v
    torch.distributed.all_reduce = counted
    times = _times(lambda: H @ v)
    sums, numbers = (total // (_ROUNDS + 1) for total in (len(sent), sum(sent)))
    torch.distributed.all_reduce = late
    times_late = _times(lambda: H @ v)
    of_a_sum = _times(lambda: send(vector))
    if rank == 0:
        measured = {
            "size": problem.size,
            "time": float(np.median(times)),
            "late": float(np.median(times_late)),
            "sum": float(np.median(of_a_sum)),
            "sums": sums,
            "numbers": numbers,
        }
        Path(folder, "measured.json").write_text(json.dumps(measured))
    torch.distributed.destroy_process_group()


def _times(call: Callable[[], Any]) -> list[float]:
    call()
    found = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


CASE = Case("processes", "Several processes", {"torch": measure}, often=False)

if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
