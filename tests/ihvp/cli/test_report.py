"""``ihvp influence --report``: a page of the data of an objective, in memory or in batches."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ihvp
from ihvp.cli import app

TRAINING = """
import ihvp
import numpy as np

generator = np.random.default_rng(0)
x = generator.normal(size=(30, 4))
y = generator.integers(0, 3, size=30)

def grad(w, batch):
    x, y = batch["x"], batch["y"]
    return x.T @ (x @ w - y) / len(y)

weights = np.linalg.lstsq(x, y)[0]
data = {"x": x, "y": y, "weight": np.ones(30)}
batches = [{name: each[start : start + 7] for name, each in data.items()} for start in range(0, 30, 7)]
objective = ihvp.Objective(params=weights, data=data, grad=grad)
cut = ihvp.Objective(params=weights, data=data, grad=grad, batch_size=4)
listed = ihvp.Objective(params=weights, data=batches, grad=grad)
test_data = {"x": x[:3] + 0.1, "y": y[:3], "weight": np.ones(3)}
test_batches = [{name: each[i : i + 1] for name, each in test_data.items()} for i in range(3)]
products = ihvp.Influence(objective).inverse_products(test_data)

def images(batch):
    return batch["x"].reshape(-1, 2, 2)

def texts(batch):
    return [f"<row> of {row[0]:.9f}" for row in batch["x"]]

def frame(batch):
    import pandas
    return pandas.DataFrame(batch["x"], columns=list("abcd"))

def columns(batch):
    return dict(zip("abcd", batch["x"].T))

def names(batch):
    return ["none one two".split()[i] for i in batch["y"]]

def short(batch):
    return ["a"]

def broken(batch):
    return batch["nothing"]
"""


@pytest.fixture
def training(tmp_path, monkeypatch):
    (tmp_path / "training.py").write_text(TRAINING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    namespace = {}
    exec(TRAINING, namespace)
    yield namespace
    sys.modules.pop("training", None)


def run(*arguments, objective="training:objective", test="training:test_data"):
    arguments = ["influence", objective, "--test", test, "--top", "4", "--report", "page.html", *arguments]
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "300"})
    return result.exit_code, result.output


def read():
    return Path("page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("objective", ["objective", "cut", "listed"])
@pytest.mark.parametrize("test", ["test_data", "test_batches"])
def test_the_page_shows_both_rankings_with_their_inputs_and_labels(training, objective, test):
    code, output = run(
        "--inputs", "training:texts", objective=f"training:{objective}", test=f"training:{test}"
    )
    assert code == 0, output
    assert "The page is page.html" in output
    influence = ihvp.Influence(training["objective"])
    sections = read().split("<section ")[1:]
    assert len(sections) == 3
    for j, section in enumerate(sections):
        for which in ("helpful", "harmful"):
            top = influence.top_k(training["test_data"], 4, which=which)
            for i, score in zip(top.indices[j], top.scores[j], strict=True):
                (body,) = re.findall(rf'<tbody data-score="[^"]*" data-example="{i}".*?</tbody>', section)
                assert float(body.split('"')[1]) == pytest.approx(score, rel=1e-4)
                assert f'data-label="{training["y"][i]}"' in body
                assert f"&lt;row&gt; of {training['x'][i, 0]:.9f}" in body
        assert f"&lt;row&gt; of {training['test_data']['x'][j, 0]:.9f}" in section.partition("<table")[0]
        assert f"label <bdi>{training['y'][j]}</bdi>" in section


@pytest.mark.parametrize("inputs", ["images", "frame", "columns", None])
def test_inputs_of_every_kind_come_from_batches(training, inputs):
    options = ["--inputs", f"training:{inputs}"] if inputs else []
    code, output = run(*options, "--labels", "training:names", objective="training:listed")
    assert code == 0, output
    page = read()
    assert ("<img" in page) == (inputs == "images")
    assert ("<dt>a</dt>" in page, "<dt>0</dt>" in page) == (inputs in ("frame", "columns"), inputs is None)
    assert set(re.findall(r'<tbody [^>]*data-label="(\w+)"', page)) <= {"none", "one", "two"}


def test_one_ranking_is_one_list(training):
    run("--which", "harmful")
    assert re.findall(r'<table class="(\w+)">', read()) == ["harmed"] * 3


def test_scores_in_a_folder_and_inverse_products_have_a_page_too(training):
    assert run("--out", "scores")[0] == 0
    whole = read()
    code, output = run(test="training:products")
    assert code == 0, output
    numbers = r'data-example="(\d+)"'
    assert re.findall(numbers, read()) == re.findall(numbers, whole)
    assert "Input of query" in whole
    assert "Input of query" not in read()


BAD = {
    "no folder": (["--report", "no_folder/page.html"], "a folder that is there"),
    "no function": (["--inputs", "training:nothing"], "'training' has no 'nothing'"),
    "data in the place of a function": (["--labels", "training:y"], "expected a function of a batch"),
    "too few": (["--inputs", "training:short"], "one for each of 3 examples"),
    "broken": (["--labels", "training:broken"], "The function of --labels failed with KeyError: 'nothing'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_shown_is_told_before_any_work(training, case):
    options, text = BAD[case]
    code, output = run("--out", "scores", *options)
    assert code == 1
    assert text in output
    assert not [name for name in ("scores", "page.html") if Path(name).exists()]


def test_options_of_the_page_need_one(training):
    arguments = [
        "influence",
        "training:objective",
        "--test",
        "training:test_data",
        "--inputs",
        "training:texts",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "--report beside it" in " ".join(result.output.split())
