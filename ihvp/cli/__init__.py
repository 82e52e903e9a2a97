"""The command line: ``ihvp backends``, ``influence``, ``evaluate``, ``contract``, ``demo`` and so on."""

from ihvp.cli.main import app

__all__ = ["app"]
