"""``ihvp contract``: the contract suite on one backend."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from ihvp._registry import usable_plugin
from ihvp.packages import required


def run(backend: str, options: Sequence[str]) -> int:
    """Run the suite in a process of its own, with the backend's environment; return pytest's exit status.

    ``options`` go to pytest.
    """
    plugin = usable_plugin(backend)
    required("pytest", "ihvp contract", "pip install pytest")
    suite = ["-p", "ihvp.testing.option", "--pyargs", "ihvp.testing", "--ihvp-backend", backend]
    command = [sys.executable, "-m", "pytest", *suite, *options]
    return subprocess.run(command, env={**os.environ, **plugin.environment}, check=False).returncode
