"""Streamed runs that are stopped: ``python killed_runs.py FOLDER NAME SIGNAL STOPS SEED`` tells of each.

SIGNAL is the name of a signal: SIGKILL, or SIGINT as Ctrl-C sends it.
One process imports the library once and forks a child for every run.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np

import ihvp
from ihvp.influence import blocks
from ihvp.influence.store import Store

# 3 parameters: a tile of 8 × 8 scores.
NUMBERS, TESTS, EXAMPLES = 64, 32, 160
CHUNKS = (TESTS // 8) * (EXAMPLES // 8)


def run(folder: Path, log: Path) -> None:
    """Least squares by finite differences; a line in the log for each chunk that was computed."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(EXAMPLES, 3)), rng.normal(size=EXAMPLES)
    objective = ihvp.Objective(
        params=np.linalg.lstsq(x, y, rcond=None)[0],
        data=(x, y),
        grad=lambda w, batch: batch[0].T @ (batch[0] @ w - batch[1]) / len(batch[0]),
    )
    blocks.NUMBERS = NUMBERS
    original = Store.write

    def write(store: Store, row: int, column: int, chunk: np.ndarray) -> None:
        with log.open("ab", buffering=0) as file:
            file.write(b"%d %d\n" % (row, column))
        original(store, row, column, chunk)

    Store.write = write
    ihvp.Influence(objective).scores((rng.normal(size=(TESTS, 3)), np.zeros(TESTS)), out=folder)


def fork(folder: Path, log: Path) -> int:
    """The number of a process that does the run."""
    child = os.fork()
    if child == 0:
        try:
            run(folder, log)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    return child


def finish(folder: Path, log: Path) -> None:
    """A run to its end."""
    _, status = os.waitpid(fork(folder, log), 0)
    assert status == 0


def contents(folder: Path) -> dict[str, bytes]:
    """The scores as they are on the disk; what a killed write left under another name is none."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "scores" in str(path.relative_to(folder)) and path.suffix != ".partial"
    }


def finished_chunks_are(folder: Path, expected: Path) -> bool:
    """Whether what a stopped run says to be done is done."""
    journal = folder / "done.txt"
    if not journal.exists() or not journal.stat().st_size:
        return True
    found, whole = scores(folder), scores(expected)
    # The last line may be torn, and is no promise then.
    chunks = (map(int, line.split()[:4]) for line in journal.read_text().split("\n")[:-1])
    return all(
        np.array_equal(
            found[row : row + rows, column : column + columns],
            whole[row : row + rows, column : column + columns],
        )
        for row, column, rows, columns in chunks
    )


def scores(folder: Path) -> np.ndarray:
    if folder.suffix != ".zarr":
        return np.load(folder / "scores.npy")
    import zarr

    return zarr.open_array(folder / "scores.zarr", mode="r")[:]


def lines(path: Path) -> int:
    """The number of whole lines."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def running(child: int) -> bool:
    """Whether a process has not ended; it is not reaped."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def main(root: Path, name: str, stop: signal.Signals, stops: int, seed: int) -> None:
    # A job in the background begins with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    undisturbed = root / "undisturbed" / name
    started = time.perf_counter()
    finish(undisturbed, root / "undisturbed.log")
    duration = time.perf_counter() - started
    expected = contents(undisturbed)
    rng, outcomes = np.random.default_rng(seed), []
    while len(outcomes) < stops:
        folder, log = root / "killed" / name, root / "killed.log"
        shutil.rmtree(folder, ignore_errors=True)
        log.unlink(missing_ok=True)
        child = fork(folder, log)
        # At a random place of the work, however fast the machine is.
        place = rng.integers(0, CHUNKS)
        while lines(log) < place and running(child):
            time.sleep(1e-4)
        time.sleep(rng.uniform(0, duration / CHUNKS))
        os.kill(child, stop)
        _, status = os.waitpid(child, 0)
        if status == 0:
            continue  # it had ended before
        done = lines(folder / "done.txt")
        valid = finished_chunks_are(folder, undisturbed)
        finish(folder, log)
        repeated = lines(log) - CHUNKS
        equal = contents(folder) == expected
        outcomes.append({"done": done, "valid": valid, "repeated": repeated, "equal": equal})
    print(json.dumps({"chunks": lines(root / "undisturbed.log"), "outcomes": outcomes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], signal.Signals[sys.argv[3]], int(sys.argv[4]), int(sys.argv[5]))
