"""The pytest plugin that says which backend the suite runs on: ``--ihvp-backend NAME``.

It is loaded by name (``-p ihvp.testing.option``), not through an entry point, which would make every run of
pytest in the environment import numpy and scipy.
"""

from __future__ import annotations

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
