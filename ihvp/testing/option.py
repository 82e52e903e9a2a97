"""The suite's pytest plugin: ``--ihvp-backend NAME`` says what it runs on, its last lines what it skipped.

It is loaded by name (``-p ihvp.testing.option``), not through an entry point, which would make every run of
pytest in the environment import numpy and scipy.
"""

from __future__ import annotations

from collections import Counter

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--ihvp-backend", metavar="NAME", help="the registered backend to run the contract on")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give the name to the suite's class."""
    name = metafunc.config.getoption("--ihvp-backend")
    if metafunc.module.__name__ == "ihvp.testing.test_contract" and metafunc.cls is not None:
        if name is None:
            raise pytest.UsageError("Say which backend to test: --ihvp-backend NAME (see `ihvp backends`).")
        metafunc.cls.name = name


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was skipped and why, one line a reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    if reasons:
        terminalreporter.section("what was skipped, and why")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:4} {'test' if count == 1 else 'tests'}: {reason}")
