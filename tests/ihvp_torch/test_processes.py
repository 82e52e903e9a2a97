"""Data spread over processes of ``torch.distributed``: every result is that of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forks")
def test_every_answer_is_that_of_one_process(tmp_path):
    script = Path(__file__).with_name("rank_of_many.py")
    # Threads do not survive a fork.
    options = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, script, tmp_path], timeout=240, check=False, **options)
    assert done.returncode == 0, done.stderr
