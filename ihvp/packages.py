"""Packages that only some features need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ihvp.errors import PackageNotInstalled


def required(module: str, feature: str, install: str, package: str | None = None) -> Any:
    """A module of a package that ``feature`` needs, or PackageNotInstalled."""
    top = module.partition(".")[0]
    try:
        import_module(top)
        return import_module(module)
    except ImportError as error:
        raise PackageNotInstalled(feature, package or top, install) from error
