"""Three processes write the scores to one folder, and one of them is killed, again and again; two finish.

Run as ``python killed_rank.py FOLDER``. The processes are forks, so that packages are loaded once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import ihvp
from ihvp.errors import InvalidOption, ProcessFailed, StoreError
from ihvp.influence import blocks
from ihvp.influence.store import Store

torch.manual_seed(0)
X, Y = torch.randn(60, 4, dtype=torch.float64), torch.randint(3, (60,))
NET = nn.Linear(4, 3).double()
TEST = X[:12] + 0.1, Y[:12]
OTHERS = X[20:50] - 0.1, Y[20:50]
BATCHES = 5
PARTS = {1: (0, 60), 2: (0, 37, 60), 3: (0, 11, 12, 60)}


def influence(part):
    """Tiles have at most 8 columns and 4 rows, so that there is something to interrupt."""
    blocks.NUMBERS, blocks._EXAMPLES = 4 * 15, 8
    objective = ihvp.Objective(lambda net, b: functional.cross_entropy(net(b[0]), b[1]), NET, part)
    return ihvp.Influence(objective, 0.1, ihvp.CG(rtol=1e-11))


def all_scores(folder, part, batches, products):
    """Of what is solved for, and of inverse products."""
    listed = list(zip(batches[0].split(BATCHES), batches[1].split(BATCHES), strict=True))
    return {
        "solved": influence(part).scores(TEST, out=folder / "solved"),
        "products": influence(part).scores(products, out=folder / "products"),
        "batches": influence(listed).scores(products, out=folder / "batches"),
        "others": influence(part).scores(products, OTHERS, out=folder / "others"),
    }


def work(rank, count, folder, products, victim, number):
    """What one of ``count`` processes does; the victim ends at its third tile, in run ``number``."""
    group, writes = folder / f"group-{number}-{count}", 2
    torch.distributed.init_process_group("gloo", init_method=f"file://{group}", rank=rank, world_size=count)
    part = slice(*PARTS[count][rank : rank + 2])
    write = Store.write

    def die_at_last(self, *tile):
        nonlocal writes
        writes -= 1
        if rank == victim and writes < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, *tile)

    Store.write = die_at_last
    data = X[part], Y[part]
    if victim is None:
        for name, scores in all_scores(folder, data, data, products).items():
            np.save(folder / f"{name}-{rank}.npy", scores)
        refusals(rank, folder, data, products)
        return
    try:
        all_scores(folder, data, data, products)
    except ProcessFailed:
        return
    raise AssertionError(f"rank {rank} has not noticed the end of rank {victim}")


def refusals(rank, folder, data, products):
    """A folder that is not the same for all, and one of zarr."""
    scores = influence(data).scores
    with pytest.raises(InvalidOption, match="zarr chunk"):
        scores(products, out=folder / "scores.zarr")
    own = folder / f"machine-{rank}"
    own.mkdir()
    os.chdir(own)
    with pytest.raises(StoreError if rank else ProcessFailed, match="one folder that all processes see"):
        scores(products, out="scores")


def run(count, folder, products, victim=None, number=0):
    """How long the processes take to end."""
    fork = multiprocessing.get_context("fork")
    arguments = folder, products, victim, number
    ranks = [fork.Process(target=work, args=(rank, count, *arguments)) for rank in range(count)]
    for rank in ranks:
        rank.start()
    if victim is not None:
        ranks[victim].join()
    start = time.monotonic()
    for place, rank in enumerate(ranks):
        rank.join(60)
        expected = -signal.SIGKILL if place == victim else 0
        assert rank.exitcode == expected, f"rank {place} of {count}: {rank.exitcode}"
    return time.monotonic() - start


def main(folder):
    warnings.simplefilter("ignore", ihvp.influence.NotAtOptimum)
    warnings.simplefilter("error", ihvp.influence.StoreDamaged)
    torch.set_num_threads(1)
    alone, together = Path(folder, "alone"), Path(folder, "together")
    alone.mkdir(), together.mkdir()
    products = influence((X, Y)).inverse_products(TEST)
    expected = all_scores(alone, (X, Y), (X, Y), products)
    longest = max(run(3, together, products, kill % 3, kill) for kill in range(3))
    run(2, together, products)
    for name, right in expected.items():
        for rank in range(2):
            found = np.load(together / f"{name}-{rank}.npy")
            np.testing.assert_allclose(found, right, rtol=1e-8, atol=1e-12, err_msg=name)
            if name in ("products", "others"):
                np.testing.assert_array_equal(found, right, name)
    print(f"the others ended {longest:.1f} s after the one that was killed")


if __name__ == "__main__":
    main(sys.argv[1])
