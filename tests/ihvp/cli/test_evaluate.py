"""``ihvp evaluate``, on a least-squares fit in a file of the current folder."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose
from typer.testing import CliRunner

import ihvp
from ihvp.cli import app

TRAINING = """
import ihvp
import numpy as np

generator = np.random.default_rng(0)
x = generator.normal(size=(30, 3))
y = x @ np.ones(3) + generator.normal(size=30)
test_data = generator.normal(size=(5, 3)), generator.normal(size=5)
mislabelled = np.arange(30) < 4

def loss(w, batch):
    x, y = batch
    return ((x @ w - y) ** 2).mean() / 2

def grad(w, batch):
    x, y = batch
    return x.T @ (x @ w - y) / len(y)

def wrong(w, batch):
    x, y = batch
    return (np.sign(x @ w) != np.sign(y)).mean()

def train(kept, seed):
    return np.linalg.lstsq(x[kept], y[kept])[0]

objective = ihvp.Objective(loss, train(np.arange(30), 0), (x, y), grad=grad)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "training.py").write_text(TRAINING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield tmp_path
    sys.modules.pop("training", None)


@pytest.fixture
def training(folder):
    namespace = {}
    exec(TRAINING, namespace)
    return namespace


TRAINED = ("--test", "training:test_data", "--train-fn", "training:train")


def run(*arguments):
    result = CliRunner().invoke(
        app, ["evaluate", "training:objective", *map(str, arguments)], env={"COLUMNS": "300"}
    )
    return result.exit_code, result.output


def rows_of(output):
    return [[cell.strip() for cell in line.split("│")[1:5]] for line in output.splitlines() if "│" in line]


def test_each_damping_has_its_score_and_standard_error(training, folder):
    code, output = run(
        *TRAINED, "--dampings", "0.1,0.01,1", "--subsets", 20, "--out", "kept", "--plot", "path.svg"
    )
    assert code == 0, output
    objective, test = training["objective"], training["test_data"]
    outcomes = ihvp.evaluate.retrain(objective, training["train"], test, 20)
    path = ihvp.evaluate.dampings(objective, outcomes, test, [0.01, 0.1, 1.0])
    rows = rows_of(output)
    assert [row[0] for row in rows] == ["damping 0.01", "damping 0.1", "damping 1"]
    assert_allclose([float(row[2]) for row in rows], path.value, atol=1e-4)
    assert_allclose([float(row[3]) for row in rows], path.standard_error, atol=1e-4)
    assert f"Take a damping of {path.damping:g}" in output
    assert np.load(folder / "kept" / "lds" / "outcomes.npy").shape == (20, 5)
    assert (folder / "path.svg").read_text().startswith("<?xml")


def test_single_examples_are_removed(training):
    code, output = run(*TRAINED, "--metric", "loo", "--subsets", 10)
    assert code == 0, output
    ((setting, what, value, _),) = rows_of(output)
    assert (setting, what) == ("damping 0", "Leave-one-out correlation")
    assert float(value) > 0.9


def test_the_most_helpful_examples_are_removed_beside_random_ones(folder):
    code, output = run(*TRAINED, "--metric", "brittleness", "--wrong", "training:wrong")
    assert code == 0, output
    rows = {(row[0], row[1]): float(row[2]) for row in rows_of(output)}
    assert rows["3 most helpful removed", "rise of the loss"] > rows["3 random removed", "rise of the loss"]
    assert ("3 random removed", "became wrong") in rows


def test_mislabelled_examples_are_detected(training):
    code, output = run(
        "--metric", "detection", "--mislabelled", "training:mislabelled", "--curvature", "hessian"
    )
    assert code == 0, output
    expected = ihvp.evaluate.detection(
        ihvp.Influence(training["objective"]).self_influence(), training["mislabelled"]
    )
    assert_allclose(
        [float(cell) for cell in rows_of(output)[0][2:]], [expected.value, expected.standard_error], atol=1e-4
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (TRAINED[:2], "--train-fn is None; expected module:name, which --metric lds needs"),
        (TRAINED[2:], "--test is None"),
        (("--metric", "detection"), "--mislabelled is None"),
        ((*TRAINED, "--dampings", "a"), "--dampings is 'a'"),
        ((*TRAINED, "--dampings", "-1"), "expected"),
        ((*TRAINED, "--metric", "loo", "--dampings", "1,2"), "only lds takes several"),
        ((*TRAINED, "--plot", "path.xyz"), "--plot is 'path.xyz'"),
        ((*TRAINED, "--curvature", "ekfac"), "predict"),
        ((*TRAINED, "--subsets", "4"), "at least 5"),
        ((*TRAINED[:3], "training:nothing"), "'training' has no 'nothing'"),
    ],
)
def test_what_is_missing_or_out_of_range_is_named(folder, arguments, text):
    code, output = run(*arguments)
    assert code == 1
    assert text in output
    assert "Traceback" not in output
