"""``ihvp index``, on the least-squares fit of ``ihvp influence``."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from typer.testing import CliRunner

import ihvp
from ihvp.cli import app

from .test_influence import folder  # noqa: F401 - a fixture


def run(*arguments):
    return CliRunner().invoke(app, [*arguments], env={"COLUMNS": "300"})


BUILD = ("index", "build", "training:objective", "--out", "kept", "--dim", "2")


@pytest.mark.usefixtures("folder")
def test_an_index_is_built_and_asked(tmp_path):
    built = run(*BUILD)
    assert built.exit_code == 0, built.output
    assert "30 examples × 2 numbers: 2.4e-07 GB, about 0 seconds." in built.output
    asked = run("index", "query", "kept", "training:objective", "--test", "training:test_data", "--top", "3",
                "--out", "top.csv", "--gram-damping", "0.1")  # fmt: skip
    assert asked.exit_code == 0, asked.output
    assert "Test point 4" in asked.output
    assert "… and 2 more test points." in asked.output
    import training

    index = ihvp.GradientIndex("kept", training.objective, curvature="gram", damping=0.1)
    with open("top.csv", newline="") as file:
        found = np.array([int(row["train"]) for row in csv.DictReader(file)]).reshape(7, 3)
    assert_array_equal(found, index.top_k(training.test_data, 3).indices)
    told = run("index", "info", "kept")
    assert "sparse, seed 0" in told.output
    assert "not kept apart" in told.output


@pytest.mark.usefixtures("folder")
def test_a_dry_run_writes_nothing(tmp_path):
    told = run(*BUILD, "--dry-run")
    assert told.exit_code == 0
    assert "30 examples × 2 numbers" in told.output
    assert not (tmp_path / "kept").exists()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("index", "info", "nowhere"), "holds no store of gradients"),
        (
            ("index", "query", "nowhere", "training:objective", "--test", "training:test_data"),
            "holds no store",
        ),
        ((*BUILD[:-1], "4"), "at most 3"),
        ((*BUILD, "--kind", "factored"), "predict"),
    ],
)
def test_what_cannot_be_done_is_named(arguments, message):
    failed = run(*arguments)
    assert failed.exit_code == 1
    assert message in " ".join(failed.output.split())
