"""Three processes, of which one fails while the others wait: what each of them raises.

Run as ``python failing_rank.py FOLDER``. The processes are forks, so that packages are loaded once.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
import types
import warnings
from datetime import timedelta

import numpy as np
import torch
from typer.testing import CliRunner

import ihvp
import ihvp_torch._processes
from ihvp.cli import app
from ihvp.errors import DataError, ParameterError, ProcessesDiffer, ProcessFailed

X, W = torch.arange(24.0, dtype=torch.float64).reshape(12, 2) / 24, torch.ones(2, dtype=torch.float64)

PORTS = []


class Mean:
    """A loss that raises at one call on one process, without being another function there."""

    failing = False

    def __call__(self, w, x):
        if Mean.failing:
            raise ValueError("spoilt")
        return ((x @ w - 1) ** 2).mean() + (w**2).sum()


def raised(call):
    try:
        call()
    except Exception as error:
        return error
    return None


def all_fail_and_go_on(rank):
    """An error that all have at the same place ends nothing; they wait as for a sum on another device."""
    wait = ihvp_torch._processes._wait
    ihvp_torch._processes._wait = lambda work, kind: wait(work, "cuda")
    objective = ihvp.Objective(Mean(), W, X[4 * rank : 4 * rank + 4])
    expected = np.asarray(objective.gradient())
    for again in range(2):
        told = raised(lambda again=again: ihvp.Influence(objective, 0.1 * (rank + 1 + again)).scores(X[:2]))
        assert isinstance(told, ProcessesDiffer), told
        time.sleep(1.5 * (rank == again))  # the others wait for this one, and look for failures
        np.testing.assert_array_equal(objective.gradient(), expected)


def one_fails(rank):
    """What fails in one process is named in all, there and where they go on."""
    objective = ihvp.Objective(Mean(), W, X[4 * rank : 4 * rank + 4])
    objective.gradient()
    Mean.failing = rank == 1
    told = raised(ihvp.Influence(objective, 0.1, curvature=ihvp.Hessian(objective)).self_influence)
    assert isinstance(told, DataError if rank == 1 else ProcessFailed), repr(told)
    assert "spoilt" in str(told), told
    time.sleep(3)  # a process that ends takes its connections along, and the first one the store of words
    Mean.failing = False
    told = raised(objective.gradient)
    assert isinstance(told, ProcessFailed), repr(told)


def one_is_killed(rank):
    objective = ihvp.Objective(Mean(), W, X[4 * rank : 4 * rank + 4])
    objective.gradient()
    if rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    told = raised(objective.gradient)
    assert isinstance(told, ProcessFailed), repr(told)


def sums_come_when_the_others_look(rank):
    """A sum that arrives just after the wait for it has ended is no failure."""
    ihvp_torch._processes._LOOK = timedelta(milliseconds=3)
    group, draw = ihvp_torch._processes.group(), np.random.default_rng(rank)
    for number in range(600):
        time.sleep(draw.uniform(2e-3, 4e-3) * (number % 3 == rank))
        total = torch.full((2,), float(number + rank))
        group.sum(total)
        assert total.tolist() == [3 * number + 3] * 2


def a_command_fails(rank):
    """Where one process of a command fails, all do: here the first, which alone writes."""
    training = types.ModuleType("training")
    training.objective, training.test = ihvp.Objective(Mean(), W, X), X[:2]
    sys.modules["training"] = training
    options = "--test training:test --damping 1 --top 2 --out"
    asked = ["influence", "training:objective", *options.split()]
    for port, out, says in (
        (PORTS[0], "new", "All scores are in new"),
        (PORTS[1], "new", "All scores are in new"),
        (PORTS[2], "new/top.csv/scores", "Error: Cannot use new/top.csv/scores"),
    ):
        os.environ["MASTER_PORT"] = str(port)
        done = CliRunner().invoke(app, [*asked, out], env={"COLUMNS": "1000"})
        failed = says.startswith("Error")
        assert done.exit_code == failed, done.output
        expected = (says,)
        if rank > 0:  # the first has the store of words, and may be gone with it
            ended = "Error: The process of rank 0 failed", "Error: Another process failed"
            expected = ended if failed else ("",)
        assert any(line.startswith(expected) for line in done.output.splitlines() or [""]), done.output
        assert rank == 0 or failed or not done.output, done.output


def nothing_adds_up_on_this_device(rank):
    told = raised(ihvp.Objective(Mean(), W, X[4 * rank : 4 * rank + 4]).gradient)
    assert isinstance(told, ParameterError), repr(told)
    assert "cannot add up what is on cpu" in str(told)


def work(rank, scenario):
    warnings.simplefilter("ignore", ihvp.influence.NotAtOptimum)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(PORTS[0]),
        "RANK": str(rank),
        "WORLD_SIZE": "3",
    }
    if scenario is not a_command_fails:
        kind = "cuda:gloo" if scenario is nothing_adds_up_on_this_device else "gloo"
        torch.distributed.init_process_group(kind)
    scenario(rank)


def free_ports(count):
    with contextlib.ExitStack() as servers:
        made = [servers.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in made]


SCENARIOS = (
    sums_come_when_the_others_look,
    all_fail_and_go_on,
    one_fails,
    one_is_killed,
    a_command_fails,
    nothing_adds_up_on_this_device,
)


def main():
    torch.set_num_threads(1)
    fork, failed = multiprocessing.get_context("fork"), []
    os.chdir(sys.argv[1])
    for scenario in SCENARIOS:
        PORTS[:] = free_ports(3)
        ranks = [fork.Process(target=work, args=(rank, scenario)) for rank in range(3)]
        for rank in ranks:
            rank.start()
        for number, rank in enumerate(ranks):
            rank.join(60)
            killed = scenario is one_is_killed and number == 2
            if rank.exitcode != (-signal.SIGKILL if killed else 0):
                failed.append(f"{scenario.__name__}, rank {number}: {rank.exitcode}")
                rank.kill()
    sys.exit("; ".join(failed) or None)


if __name__ == "__main__":
    main()
