import sys
from dataclasses import FrozenInstanceError

import pytest
from typer.testing import CliRunner

from ihvp import experiments
from ihvp.cli import app
from ihvp.errors import InvalidOption, PackageNotInstalled, UnknownExperiment
from ihvp.experiments import EXPERIMENTS, Experiment, Finding

FAKE = "tests_fake_experiment"


@pytest.fixture
def fake(monkeypatch):
    """Two experiments that write no figure; the second takes ``full``. Returns what they were called with."""
    calls = []

    class Module:
        @staticmethod
        def run(out, backend=None, **options):
            calls.append((out, backend, options))
            held = bool(options) or backend is None
            return Finding("It rains.", "It [rains].", "some [rain]", held, (out / "rain.csv",))

    monkeypatch.setitem(sys.modules, FAKE, Module)
    monkeypatch.setattr(experiments, "EXPERIMENTS", known := {})
    monkeypatch.setattr("ihvp.cli.experiment.EXPERIMENTS", known)
    known["rain"] = Experiment(FAKE, "Whether it rains.")
    known["snow"] = Experiment(FAKE, "Whether it snows.", has_full=True)
    return calls


def invoke(*arguments):
    return CliRunner().invoke(app, ["experiment", *map(str, arguments)], env={"COLUMNS": "150"})


def test_every_experiment_is_listed():
    assert set(EXPERIMENTS) == {"complexity", "scale", "damping", "step", "modes", "hessian", "loo"}


def test_without_a_name_the_experiments_are_listed(fake):
    result = invoke()
    assert result.exit_code == 0
    assert "rain" in result.output
    assert "Whether it snows." in result.output
    assert not fake


def test_an_unknown_name_is_answered_with_the_known_ones(fake, tmp_path):
    with pytest.raises(UnknownExperiment, match=r"'hail'.*rain, snow; or all"):
        experiments.run("hail", tmp_path)
    result = invoke("hail")
    assert result.exit_code == 1
    assert "No experiment is called 'hail'" in result.output


def test_the_claim_the_finding_the_verdict_and_the_files_are_printed(fake, tmp_path):
    result = invoke("rain", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    for text in ("rain: the claim held", "It rains.", "It [rains].", str(tmp_path / "rain.csv")):
        assert text in result.output


def test_a_claim_that_did_not_hold_is_said_so(fake, tmp_path):
    result = invoke("rain", "--backend", "numdiff", "--out", tmp_path)
    assert result.exit_code == 0
    assert "rain: the claim did not hold" in result.output


def test_all_runs_every_one_and_the_long_form_where_there_is_one(fake, tmp_path):
    assert invoke("all", "--full", "--out", tmp_path).exit_code == 0
    assert fake == [(tmp_path, None, {}), (tmp_path, None, {"full": True})]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (InvalidOption("backend", None, "clouds"), "backend is None; expected clouds."),
        (RuntimeError("out of [clouds]"), "RuntimeError: out of [clouds]"),
    ],
)
def test_all_goes_on_after_one_that_fails_and_then_fails(fake, tmp_path, monkeypatch, error, text):
    experiments.EXPERIMENTS["rain"] = Experiment("tests_dry_experiment", "Whether it rains.")

    class Dry:
        @staticmethod
        def run(out, backend=None):
            raise error

    monkeypatch.setitem(sys.modules, "tests_dry_experiment", Dry)
    result = invoke("all", "--out", tmp_path)
    assert result.exit_code == 1
    assert f"rain: failed. {text}" in result.output
    assert "snow: the claim held" in result.output
    assert [row[0] for row in summary(result)] == ["rain", "snow"]
    assert "failed" in summary(result)[0]


def summary(result):
    """The rows of the table at the end, in words."""
    lines = result.output.rstrip().splitlines()
    (head,) = (
        i for i, line in enumerate(lines) if line.split() == ["experiment", "finding", "claim", "seconds"]
    )
    return [line.split() for line in lines[head + 1 :]]


def test_all_ends_with_a_table_of_findings_verdicts_and_seconds(fake, tmp_path):
    rain, snow = summary(invoke("all", "--backend", "numdiff", "--full", "--out", tmp_path))
    assert rain[:-1] == ["rain", "some", "[rain]", "did", "not", "hold"]
    assert snow[:-1] == ["snow", "some", "[rain]", "held"]
    assert all(0 <= float(row[-1]) < 10 for row in (rain, snow))


def test_a_claim_that_did_not_hold_is_no_failure(fake, tmp_path):
    assert invoke("all", "--backend", "numdiff", "--out", tmp_path).exit_code == 0


def test_an_experiment_about_one_backend_refuses_others(fake, tmp_path):
    experiments.EXPERIMENTS["rain"] = Experiment(FAKE, "Whether it rains.", only="numdiff")
    with pytest.raises(
        InvalidOption, match="'torch'; expected 'numdiff', the one backend that 'rain' is about"
    ):
        experiments.run("rain", tmp_path, "torch")
    assert not fake
    experiments.run("rain", tmp_path, "numdiff")


def test_all_runs_an_experiment_about_one_backend_on_that_one(fake, tmp_path):
    experiments.EXPERIMENTS["rain"] = Experiment(FAKE, "Whether it rains.", only="numdiff")
    assert invoke("all", "--backend", "torch", "--out", tmp_path).exit_code == 0
    assert [backend for _, backend, _ in fake] == ["numdiff", "torch"]


def test_the_long_form_is_refused_where_there_is_none(fake, tmp_path):
    with pytest.raises(InvalidOption, match="a long form has: snow"):
        experiments.run("rain", tmp_path, full=True)
    assert not fake


def test_the_folder_is_made(fake, tmp_path):
    experiments.run("rain", tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_without_matplotlib_nothing_is_run(fake, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PackageNotInstalled, match=r"pip install 'ihvp\[plot\]'"):
        experiments.run("rain", tmp_path / "never")
    assert not fake
    assert not (tmp_path / "never").exists()


def test_a_finding_is_constant():
    with pytest.raises(FrozenInstanceError):
        Finding("", "", "", True, ()).held = False
