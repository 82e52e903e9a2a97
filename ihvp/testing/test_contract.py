"""The contract on the backend that ``--ihvp-backend`` names; see :mod:`ihvp.testing.option`."""

from ihvp.testing.contract import BackendContract


class TestBackend(BackendContract):
    """The suite; the option sets ``name``."""
