"""Data spread over processes of ``torch.distributed``: every result is that of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forks")
@pytest.mark.parametrize("script", ["rank_of_many.py", "failing_rank.py", "killed_rank.py"])
def test_three_processes(script, tmp_path):
    command = [sys.executable, Path(__file__).with_name(script), tmp_path]
    # Threads do not survive a fork.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, timeout=240, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
