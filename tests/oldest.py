"""``python tests/oldest.py``: the lowest versions that pyproject.toml declares, as constraints for pip."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = ("jax", "influence", "demo", "plot")


def main() -> None:
    """Print a line for each dependency of the core and of what runs on any machine."""
    declared = PROJECT["dependencies"] + [
        line for extra in EXTRAS for line in PROJECT["optional-dependencies"][extra]
    ]
    for requirement in map(Requirement, declared):
        for bound in requirement.specifier:
            print(f"{requirement.name}=={bound.version}")


if __name__ == "__main__":
    main()
