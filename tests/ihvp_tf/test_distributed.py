"""Models of ``tf.distribute`` strategies: the same answers as those of the plain model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_models_of_strategies():
    command = [sys.executable, Path(__file__).with_name("distributed.py")]
    done = subprocess.run(command, timeout=240, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
