"""``ihvp contract``: the contract suite on one backend."""

from __future__ import annotations

from collections.abc import Sequence

from ihvp._registry import usable_plugin
from ihvp.errors import PackageNotInstalled


def run(backend: str, options: Sequence[str]) -> int:
    """Run the suite and return pytest's exit status.

    Parameters
    ----------
    backend : str
        A registered name.
    options : sequence of str
        For pytest.

    Raises
    ------
    UnknownBackend, BackendNotInstalled, BrokenBackend
        The backend cannot be used.
    PackageNotInstalled
        pytest is missing.
    """
    usable_plugin(backend)
    try:
        import pytest
    except ImportError as error:
        raise PackageNotInstalled("ihvp contract", "pytest", "pip install pytest") from error
    suite = ["-p", "ihvp.testing.option", "--pyargs", "ihvp.testing", "--ihvp-backend", backend]
    return int(pytest.main([*suite, *options]))
