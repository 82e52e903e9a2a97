"""The command line: ``ihvp backends``, ``ihvp influence``, ``ihvp contract`` and ``ihvp demo``."""

from ihvp.cli.main import app

__all__ = ["app"]
