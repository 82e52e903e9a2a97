"""The command line: ``ihvp backends`` and ``ihvp demo``."""

from ihvp.cli.main import app

__all__ = ["app"]
