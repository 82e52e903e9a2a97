"""Every public name stands in the reference, and shows an example."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "reference"
DIRECTIVES = {
    name
    for page in DOCS.glob("*.md")
    for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)
}
LISTED = [
    "ihvp",
    "ihvp.evaluate",
    "ihvp.index",
    "ihvp.influence",
    "ihvp.operators",
    "ihvp.plot",
    "ihvp.solvers",
    "ihvp.testing",
    "ihvp.uncertainty",
    "ihvp_numdiff",
]
WHOLE = ["ihvp.errors", "ihvp.backend"]
"""Modules that the reference takes as a whole."""

NAMES = sorted(f"{module}.{name}" for module in LISTED for name in importlib.import_module(module).__all__)


def value_of(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def paths_of(value):
    """The names of a value in all listed modules: the reference needs one of them."""
    return {path for path in NAMES if value_of(path) is value}


@pytest.mark.parametrize("path", NAMES)
def test_public_name_is_in_the_reference(path):
    value = value_of(path)
    assert paths_of(value) & DIRECTIVES or getattr(value, "__module__", None) in WHOLE


@pytest.mark.parametrize("module", WHOLE)
def test_module_is_in_the_reference_as_a_whole(module):
    assert module in DIRECTIVES


@pytest.mark.parametrize("module", WHOLE)
def test_public_names_of_whole_modules_have_a_docstring(module):
    defined = {
        name: value
        for name, value in vars(importlib.import_module(module)).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module and callable(value)
    }
    assert defined
    assert not [name for name, value in defined.items() if not value.__doc__]


@pytest.mark.parametrize("backend", ["ihvp_torch", "ihvp_jax", "ihvp_tf", "ihvp_numdiff"])
def test_backend_is_in_the_reference(backend):
    assert any(name.startswith(f"{backend}.") and name.endswith("Backend") for name in DIRECTIVES)


@pytest.mark.parametrize("path", NAMES)
def test_public_name_has_an_example(path):
    value = value_of(path)
    if not (inspect.isclass(value) or inspect.isfunction(value) or inspect.ismodule(value)):
        return  # a constant has no docstring
    assert ">>>" in (value.__doc__ or "")
