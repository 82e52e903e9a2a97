"""``--config``: options in a file."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ihvp.cli import app


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What reaches the commands."""
    found = {}
    monkeypatch.chdir(tmp_path)
    for command in app.registered_commands:
        monkeypatch.setattr(command, "callback", _recording(command.callback, found))
    return found


def _recording(callback, found):
    @functools.wraps(callback)
    def record(config=None, **options):
        found.update(options)

    return record


def run(text, *typed, command="influence", name="run.toml"):
    with open(name, "w") as file:
        file.write(text)
    result = CliRunner().invoke(app, [command, "--config", name, *typed], env={"COLUMNS": "300"})
    return result.exit_code, result.output


TOML = """
objective = "training:objective"
test = "training:tests"
top = 3
damping = 1e-2
which = "harmful"
solver = "direct"
train-loss = "training:margin"
out = "scores"
"""
YAML = TOML.replace(" = ", ": ")


@pytest.mark.parametrize(("text", "name"), [(TOML, "run.toml"), (YAML, "run.yaml"), (YAML, "run.yml")])
def test_a_file_holds_what_would_be_typed(asked, text, name):
    code, output = run(text, name=name)
    assert code == 0, output
    from_file = dict(asked)
    asked.clear()
    typed = (
        "influence training:objective --test training:tests --top 3 --damping 0.01 --which harmful "
        "--solver direct --train-loss training:margin --out scores"
    )
    assert CliRunner().invoke(app, typed.split()).exit_code == 0
    assert from_file == asked
    assert (asked["top"], asked["damping"], asked["out"]) == (3, 0.01, Path("scores"))


def test_what_is_typed_comes_before_the_file_and_the_file_before_the_default(asked):
    code, output = run(TOML, "other:objective", "--top", "7")
    assert code == 0, output
    assert (asked["objective"], asked["top"], asked["damping"]) == ("other:objective", 7, 0.01)


def test_the_other_commands_take_a_file_too(asked):
    assert run('backend = "jax"', command="demo")[0] == 0
    assert asked["backend"] == "jax"
    assert run("name: modes\nfull: true", command="experiment", name="run.yaml")[0] == 0
    assert (asked["name"], asked["full"]) == ("modes", True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tops = 3", "A key of run.toml is 'tops'; expected one of objective, test, top, which"),
        ("train_loss = 'a:b'", "rtol, test-loss, train-loss"),
        ("config = 'other.toml'", "A key of run.toml is 'config'"),
        ("top = 2.5", "top in run.toml is 2.5; expected what --top takes"),
        ("top = true", "top in run.toml is True; expected what --top takes"),
        ("top = 0", "top in run.toml is 0; expected what --top takes"),
        ("solver = 'lu'", "minres"),
        ("damping = -1", "damping in run.toml is -1"),
        ("top = [1, 2]", "top in run.toml is [1, 2]; expected one text, number, true or false"),
        ("[influence]\ntop = 1", "A key of run.toml is 'influence'"),
        ("top = ", "--config is 'run.toml'; expected a file of TOML"),
    ],
)
def test_a_key_or_value_that_is_wrong_is_named(asked, text, says):
    code, output = run(text)
    assert code == 1
    assert says in output
    assert not asked


def test_a_file_of_yaml_that_holds_no_keys_or_cannot_be_read_is_named(asked):
    assert "a file of keys and values" in run("- top", name="run.yaml")[1]
    assert "--config is 'run.yaml'; expected a file of TOML (.toml) or YAML" in run("{", name="run.yaml")[1]


def test_yaml_without_its_reader_says_what_to_install(asked, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    code, output = run(YAML, name="run.yaml")
    assert code == 1
    assert "pip install pyyaml" in output
    assert run(TOML)[0] == 0


def test_a_file_that_is_not_there_is_an_error_of_usage(asked):
    result = CliRunner().invoke(app, ["influence", "--config", "nothing.toml"])
    assert result.exit_code == 2
