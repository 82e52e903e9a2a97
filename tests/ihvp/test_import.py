"""What importing costs: no framework, and nothing that only some calls need."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import subprocess
import sys

import pytest

FRAMEWORKS = {"torch", "tensorflow", "keras", "jax", "jaxlib", "autograd", "sklearn", "matplotlib"}
LATER = {"pluggy", "tqdm", "typer", "rich", "pytest", "hypothesis", "scipy.special", "scipy.stats", "zarr"}
PACKAGES = ["ihvp_jax", "ihvp_numdiff", "ihvp_tf", "ihvp_torch"]


def loaded_by(statement: str) -> set[str]:
    """The modules that are loaded in a fresh interpreter after ``statement``."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_importing_ihvp_loads_no_framework_and_nothing_that_is_needed_later():
    assert not loaded_by("import ihvp") & (FRAMEWORKS | LATER)


def test_importing_ihvp_loads_no_plugin():
    assert not loaded_by("import ihvp") & set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_plugin_package_loads_no_framework(package):
    assert not loaded_by(f"import {package}") & FRAMEWORKS


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_plugins_entry_module_loads_no_framework(package):
    assert not loaded_by(f"import {package}._plugin; {package}._plugin.ihvp_backend()") & FRAMEWORKS


def test_every_plugin_of_the_distribution_is_tested_here():
    entries = importlib.metadata.distribution("ihvp").entry_points.select(group="ihvp.backends")
    assert {entry.module.partition(".")[0] for entry in entries} == set(PACKAGES)


@pytest.mark.parametrize(
    "name", ["CG", "Dense", "Hessian", "Objective", "Solution", "inverse", "solve", "use"]
)
def test_public_names_are_listed(name):
    import ihvp

    assert name in ihvp.__all__
    assert hasattr(ihvp, name)


@pytest.mark.parametrize("package", ["ihvp", *PACKAGES])
def test_type_information_is_shipped(package):
    assert (importlib.resources.files(package) / "py.typed").is_file()


def test_the_package_runs_as_a_program():
    found = subprocess.run(
        [sys.executable, "-m", "ihvp", "--version"], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == importlib.metadata.version("ihvp")
