"""``ihvp contract``: the contract suite on one backend."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Annotated

import typer

from ihvp._registry import usable_plugin
from ihvp.packages import required


def contract(
    context: typer.Context, backend: Annotated[str, typer.Argument(help="A name that `ihvp backends` lists.")]
) -> None:
    """Test a backend: run the suite that every backend has to pass. Needs pytest.

    Further options go to pytest, as in `ihvp contract torch -k linearize`.
    """
    plugin = usable_plugin(backend)
    required("pytest", "ihvp contract", "pip install pytest")
    suite = ["-p", "ihvp.testing.option", "--pyargs", "ihvp.testing", "--ihvp-backend", backend]
    command = [sys.executable, "-m", "pytest", *suite, *context.args]
    # A process of its own, with the backend's environment.
    done = subprocess.run(command, env={**os.environ, **plugin.environment}, check=False)
    raise typer.Exit(done.returncode)
