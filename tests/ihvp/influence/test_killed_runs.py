"""``kill -9`` and Ctrl-C at random moments of a streamed run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .killed_runs import CHUNKS

PROGRAM = Path(__file__).with_name("killed_runs.py")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")
@pytest.mark.parametrize(
    ("name", "stop", "stops"),
    [
        ("scores", "SIGKILL", 8),
        ("scores.zarr", "SIGKILL", 4),
        ("scores", "SIGINT", 3),
        ("scores.zarr", "SIGINT", 3),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit_and_repeats_at_most_one_chunk(tmp_path, name, stop, stops):
    environment = {
        **os.environ,
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    finished = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path), name, stop, str(stops), "0"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    outcomes = found["outcomes"]
    assert (found["chunks"], len(outcomes)) == (CHUNKS, stops)
    assert all(outcome["valid"] for outcome in outcomes)
    assert all(outcome["equal"] for outcome in outcomes)
    assert all(outcome["repeated"] in (0, 1) for outcome in outcomes)
    # Stops were in the middle of the work: how many depends on what else the machine does.
    assert any(0 < outcome["done"] < CHUNKS for outcome in outcomes)
