"""The README's examples run as they stand, each in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
EXAMPLES = dict(re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)```", README.read_text(), re.DOTALL))
CONTINUED = dict(re.findall(r"<!-- continued: (\w+) -->\n```python\n(.*?)```", README.read_text(), re.DOTALL))


def test_every_block_of_python_is_run():
    assert len(EXAMPLES) + len(CONTINUED) == README.read_text().count("```python")


def test_each_framework_has_an_example():
    assert set(EXAMPLES) == {"torch", "jax", "tf", "numdiff"}


@pytest.mark.parametrize("framework", EXAMPLES)
def test_example_is_short(framework):
    assert len([line for line in EXAMPLES[framework].splitlines() if line.strip()]) <= 12


@pytest.mark.parametrize("framework", EXAMPLES)
def test_example_runs(framework):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLES[framework] + CONTINUED.get(framework, "")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
