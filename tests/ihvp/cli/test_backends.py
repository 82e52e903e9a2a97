import dataclasses
import os
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from ihvp._registry import _Registered, registered
from ihvp.cli import app

WIDE = {"COLUMNS": "200"}


def run(*arguments):
    return CliRunner().invoke(app, arguments, env=WIDE)


@pytest.fixture
def missing_framework(monkeypatch):
    """A registered backend whose framework is not installed, and one that is broken."""
    numdiff = registered().plugin("numdiff")
    absent = dataclasses.replace(
        numdiff, name="absent", framework="no_such_framework", install="pip install it"
    )
    found = _Registered({"numdiff": numdiff, "absent": absent}, {"broken": ValueError("of no use")})
    monkeypatch.setattr("ihvp._registry.registered", lambda: found)


def test_the_table_says_what_is_missing_and_what_is_broken(missing_framework):
    result = run("backends", "--load")
    assert result.exit_code == 0
    assert "pip install it" in result.output
    assert "ValueError: of no use" in result.output
    assert "product_error" in result.output


def test_without_loading_no_factory_is_called(missing_framework, monkeypatch):
    monkeypatch.setattr("ihvp.cli.backends.usable_plugin", pytest.fail)
    result = run("backends", "--no-load")
    assert result.exit_code == 0
    assert "installed, not loaded" in result.output


def test_an_error_of_the_library_is_its_text_and_no_traceback():
    result = run("demo", "--backend", "nonsense")
    assert result.exit_code == 1
    assert "No backend is called 'nonsense'" in result.output
    assert "Traceback" not in result.output


def test_contract_runs_the_suite_with_pytests_options_and_says_what_it_skipped(capfd):
    options = ("-q", "-k", "test_hvp_of_zero or linearised_map", "-p", "no:cacheprovider")
    assert run("contract", "numdiff", *options).exit_code == 0
    output = capfd.readouterr().out
    assert "1 passed, 2 skipped" in output
    assert "   2 tests: numdiff does not declare linearize, which is optional" in output


def test_contract_runs_with_the_environment_of_the_plugin_and_fails_as_pytest_does(monkeypatch):
    numdiff = registered().plugin("numdiff")
    record = dataclasses.replace(numdiff, environment={"IHVP_PRECISION": "1"})
    monkeypatch.setattr("ihvp.cli.contract.usable_plugin", lambda name: record)
    started = []
    monkeypatch.setattr(
        "subprocess.run", lambda command, env, check: started.append(env) or SimpleNamespace(returncode=3)
    )
    assert run("contract", "numdiff").exit_code == 3
    assert started[0]["IHVP_PRECISION"] == "1"
    assert "IHVP_PRECISION" not in os.environ


def test_contract_refuses_an_unknown_backend():
    result = run("contract", "nonsense")
    assert result.exit_code == 1
    assert "Registered backends" in result.output


def test_version():
    assert run("--version").output.strip().count(".") == 2


def test_eighty_columns_break_no_word():
    result = CliRunner().invoke(app, ["backends", "--no-load"], env={"COLUMNS": "80"})
    for word in ("example_products", "input_derivatives", "per_example_grads", "tensorflow 2", "numdiff"):
        assert word in result.output
