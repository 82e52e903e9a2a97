"""The scripts of docs/examples, at a fraction of their size, each in a process of its own."""

import runpy
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def run(code, script):
    """What ``code`` prints, with the script's names in ``script``."""
    done = subprocess.run(
        [sys.executable, "-c", f"import runpy; script = runpy.run_path({str(script)!r}); {code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_removals_from_a_convolutional_network_are_predicted():
    code = "print(script['measure']('torch', removals=12, examples=300)[0].pearson.value)"
    assert float(run(code, EXAMPLES / "leave_one_out_convolutional.py")) >= 0.86


def test_self_influence_finds_most_flipped_labels():
    script = runpy.run_path(str(EXAMPLES / "mislabelled.py"))
    by_influence, _ = script["measure"](examples=500, decay=0.01, seed=0)
    assert by_influence.at(0.2) >= 0.8
