"""The built wheel: what it holds, and what each of its extras brings."""

import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PACKAGES = {"ihvp", "ihvp_torch", "ihvp_tf", "ihvp_jax", "ihvp_numdiff"}
FRAMEWORKS = {"torch": {"torch"}, "tf": {"tensorflow"}, "jax": {"jax"}, "numdiff": set()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def required(wheel, *extras):
    """The distributions that an installation with these extras asks for itself."""
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    wanted, todo, names = set(extras) | {""}, list(extras), set()
    lines = [Requirement(line) for line in message_from_bytes(wheel.read(metadata)).get_all("Requires-Dist")]
    while True:
        for requirement in lines:
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in wanted):
                names.add(requirement.name)
                if requirement.name == "ihvp":
                    todo += requirement.extras - wanted
        if not todo:
            return names - {"ihvp"}
        wanted |= set(todo)
        todo = []


def test_wheel_holds_the_five_packages_and_nothing_else(wheel):
    roots = {name.split("/")[0] for name in wheel.namelist()}
    assert {root for root in roots if not root.endswith(".dist-info")} == PACKAGES


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_packages_are_marked_as_typed(wheel, package):
    assert f"{package}/py.typed" in wheel.namelist()


def test_the_page_of_a_ranking_is_in_the_wheel(wheel):
    assert {f"ihvp/report/page.{suffix}" for suffix in ("html", "css", "js")} <= set(wheel.namelist())


@pytest.mark.parametrize("extra", FRAMEWORKS)
def test_an_extra_brings_its_framework_and_no_other(wheel, extra):
    frameworks = {"torch", "tensorflow", "jax", "keras", "autograd"}
    assert required(wheel, extra) & frameworks == FRAMEWORKS[extra]


def test_numdiff_needs_no_more_than_the_core(wheel):
    assert required(wheel, "numdiff") == required(wheel)


def test_all_brings_every_framework(wheel):
    assert set().union(*FRAMEWORKS.values()) <= required(wheel, "all")
