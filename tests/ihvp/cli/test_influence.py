"""``ihvp influence``, on a least-squares fit in a file of the current folder."""

from __future__ import annotations

import csv
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from typer.testing import CliRunner

import ihvp
from ihvp.cli import app

TRAINING = """
import ihvp
import numpy as np

generator = np.random.default_rng(0)
x = generator.normal(size=(30, 3))
y = x @ np.ones(3) + generator.normal(size=30)

def grad(w, batch):
    x, y = batch
    return x.T @ (x @ w - y) / len(y)

def slope(w, batch):
    return batch[0].mean(axis=0)

def make():
    return objective

def make_tests():
    return test_data

def make_nothing():
    pass

weights = np.linalg.lstsq(x, y)[0]
objective = ihvp.Objective(params=weights, data=(x, y), grad=grad)
untrained = ihvp.Objective(params=weights + 1, data=(x, y), grad=grad)
test_data = x[:7] + 0.1, y[:7]
one = x[:1], y[:1]
misfit = x[:2]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "training.py").write_text(TRAINING)
    (tmp_path / "failing.py").write_text("import a_package_that_is_missing")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield tmp_path
    for name in ("training", "failing"):
        sys.modules.pop(name, None)


@pytest.fixture
def training(folder):
    namespace = {}
    exec(TRAINING, namespace)
    return namespace


def run(*arguments, objective="training:objective", test="training:test_data"):
    result = CliRunner().invoke(
        app, ["influence", objective, "--test", test, *map(str, arguments)], env={"COLUMNS": "300"}
    )
    return result.exit_code, result.output


def listed(output):
    """The rows of all tables as rank, example, score and effect."""
    return [[cell.strip() for cell in line.split("│")[1:5]] for line in output.splitlines() if "│" in line]


def test_the_table_has_the_most_influential_examples(training):
    code, output = run("--top", 2, test="training:one")
    top = ihvp.Influence(training["objective"]).top_k(training["one"], 2)
    rows = listed(output)
    assert code == 0
    assert [int(row[1]) for row in rows] == top.indices[0].tolist()
    assert_allclose([float(row[2]) for row in rows], top.scores[0], rtol=1e-3)
    assert [row[3] for row in rows] == ["helps" if score > 0 else "harms" for score in top.scores[0]]


def test_only_the_first_test_points_are_shown(folder):
    _, output = run()
    assert "Test point 4" in output
    assert "Test point 5" not in output
    assert "2 more test points" in output


def test_files_hold_all_scores_and_the_top_of_each_test_point(training, folder):
    code, output = run("--top", 3, "--out", "scores")
    influence = ihvp.Influence(training["objective"])
    expected = np.asarray(influence.scores(training["test_data"]))
    assert code == 0, output
    assert_allclose(np.load(folder / "scores" / "scores.npy"), expected, rtol=1e-4, atol=1e-8)
    with (folder / "scores" / "top.csv").open() as file:
        rows = list(csv.DictReader(file))
    top = influence.top_k(training["test_data"], 3)
    assert [row["test"] for row in rows[:4]] == ["0", "0", "0", "1"]
    assert_array_equal([int(row["train"]) for row in rows], top.indices.ravel())
    assert_allclose([float(row["score"]) for row in rows], top.scores.ravel(), rtol=1e-4)


def test_the_same_command_goes_on_in_the_same_folder(folder):
    assert run("--out", "scores") == run("--out", "scores")


def test_another_setting_is_refused_in_the_same_folder(folder):
    run("--out", "scores")
    code, output = run("--out", "scores", "--damping", 0.5)
    assert code == 1
    assert "damping" in output


@pytest.mark.parametrize("which", ["helpful", "harmful"])
def test_one_kind_of_example_can_be_listed(folder, which):
    _, output = run("--which", which, test="training:one")
    assert ("helps" in output, "harms" in output) == (which == "helpful", which == "harmful")


@pytest.mark.parametrize("solver", ["minres", "direct", "auto", "cg"])
def test_each_solver_gives_the_same_ranking(training, solver):
    _, output = run("--solver", solver, "--top", 1, test="training:one")
    expected = ihvp.Influence(training["objective"]).top_k(training["one"], 1)
    assert [row[1] for row in listed(output)] == [str(expected.indices[0, 0])]


def test_lissa_runs_at_its_own_tolerance(folder):
    code, output = run("--solver", "lissa", "--rtol", 0.2)
    assert code == 0, output


def test_other_losses_can_be_asked_about(training):
    _, output = run("--test-loss", "training:slope", "--top", 1, "--train-loss", "training:grad")
    top = ihvp.Influence(training["objective"]).top_k(training["test_data"], 1, test_loss=training["slope"])
    assert_allclose([float(row[2]) for row in listed(output)], top.scores[:5, 0], rtol=1e-3)


def test_a_function_may_make_the_objective(folder):
    assert run(objective="training:make")[0] == 0


def test_a_function_may_make_the_test_points(folder):
    assert run(test="training:make_tests") == run()


@pytest.mark.filterwarnings("default::ihvp.influence.NotAtOptimum")
def test_a_model_that_is_not_trained_is_a_line_of_warning(folder):
    code, output = run(objective="training:untrained")
    assert code == 0
    assert "Warning: The parameters are not at an optimum" in output
    assert ".py:" not in output


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"objective": "training"}, "no colon"),
        ({"objective": "training.py:objective"}, "without .py"),
        ({"objective": "nothing_here:objective"}, "there is no module 'nothing_here'"),
        ({"objective": "training:nothing"}, "'training' has no 'nothing'"),
        ({"objective": "training:weights"}, "it is numpy.ndarray of shape (3,), not an ihvp.Objective"),
        ({"objective": "training:make_nothing"}, "it returned None, not an ihvp.Objective"),
        ({"test": "training:nothing"}, "'training' has no 'nothing'"),
        ({"test": "training:misfit"}, "test data is 2-d array; expected [2-d array, 1-d array]"),
    ],
)
def test_what_is_not_there_or_of_another_kind_is_named(folder, options, text):
    code, output = run(**options)
    assert code == 1
    assert text in output
    assert "Traceback" not in output


def test_an_error_of_the_users_own_file_is_shown_as_it_is(folder):
    result = CliRunner().invoke(app, ["influence", "failing:objective", "--test", "training:test_data"])
    assert isinstance(result.exception, ModuleNotFoundError)
    assert result.exception.name == "a_package_that_is_missing"


def test_more_examples_than_there_are_is_refused_before_any_work(folder):
    code, output = run("--top", 31, "--out", "scores")
    assert code == 1
    assert "--top is 31; expected an integer from 1 to 30" in output
    assert not (folder / "scores").exists()


def test_a_folder_that_cannot_be_written_is_named(folder):
    (folder / "file").write_text("")
    code, output = run("--out", "file/scores")
    assert code == 1
    assert "file/scores" in output


@pytest.mark.parametrize("option", [("--which", "best"), ("--solver", "lu"), ("--top", 0), ("--damping", -1)])
def test_an_option_out_of_its_range_is_an_error_of_usage(folder, option):
    code, output = run(*option)
    assert code == 2
    assert option[0] in output


def test_help_shows_what_the_file_looks_like():
    output = CliRunner().invoke(app, ["influence", "--help"], env={"COLUMNS": "150"}).output
    assert "test_data = x_test[:5], y_test[:5]" in output
    assert "ihvp influence training:objective --test training:test_data" in output
