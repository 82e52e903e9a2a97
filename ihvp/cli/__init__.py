"""The command line: ``ihvp backends``, ``influence``, ``evaluate``, ``contract``, ``demo`` and ``experiment``."""

from ihvp.cli.main import app

__all__ = ["app"]
