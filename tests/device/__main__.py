"""Run everything and print one page; steps that do not compete for the device's time run side by side."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

_HAS_DEVICE = {
    "torch": "import sys, torch; sys.exit(not torch.cuda.is_available())",
    "jax": "import sys, jax; sys.exit(jax.default_backend() != 'gpu')",
}
_PACKAGES = ("numpy", "torch", "jax", "curvlinops-for-pytorch", "pyDVL", "dattri", "lineax", "kronfluence")
_NEEDS = {"torch": ("curvlinops", "pydvl", "dattri"), "jax": ("lineax",)}
_CASES = {"products": 40, "blocks": 40, "solves": 90, "structured": 40}
"""The longest that each may take, in seconds."""
_CHECKS = 200
_CONTRACT = "-m pytest -q -p tests.device.on_cuda -p ihvp.testing.option --pyargs ihvp.testing --ihvp-backend"
_ANSWERS = "-m tests.device.answers"
_BENCHMARKS = "-m tests.benchmarks --device cuda --only"
_LINES = 40


@dataclass(frozen=True)
class _Step:
    title: str
    seconds: float
    status: int
    output: str

    def __str__(self) -> str:
        verdict = {0: "passed", 124: "**stopped: it took too long**"}.get(self.status, "**failed**")
        return f"## {self.title}\n\n{verdict}, {self.seconds:.0f} s\n\n{self.output}\n"


def main() -> int:
    """0 where all that could be run has passed."""
    frameworks = [name for name, test in _HAS_DEVICE.items() if _run(name, ["-c", test], 120).status == 0]
    checks = [
        (f"{what}, {framework}", f"{arguments} {framework}".split(), _CHECKS)
        for framework in frameworks
        for what, arguments in (("The contract", _CONTRACT), ("Answers beside the processor's", _ANSWERS))
    ]
    absent = {
        framework: [peer for peer in _NEEDS[framework] if not find_spec(peer)] for framework in frameworks
    }
    timings = [
        (f"{case}, {framework}", f"{_BENCHMARKS} {case}/{framework}".split(), limit)
        for case, limit in _CASES.items()
        for framework in frameworks
        if not absent[framework] and (framework == "torch" or case != "structured")
    ]
    page = ["# On a CUDA device\n", f"{_where(frameworks)}\n"]
    page += [f"Not measured: {name} without {', '.join(peers)}.\n" for name, peers in absent.items() if peers]
    with ThreadPoolExecutor() as together:
        steps = list(together.map(lambda check: _run(*check), checks))
    steps += [_run(*timing) for timing in timings]
    page += map(str, steps)
    print("\n".join(page))
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text("\n".join(page))
    return int(not frameworks or any(step.status for step in steps))


def _run(title: str, arguments: list[str], limit: float) -> _Step:
    start = time.perf_counter()
    environment = os.environ | {"JAX_ENABLE_X64": "1"} if arguments[-1:] == ["jax"] else os.environ
    with tempfile.TemporaryFile("w+") as output:
        command = ["timeout", str(limit), sys.executable, *arguments]
        status = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, check=False, env=environment
        ).returncode
        output.seek(0)
        lines = [line.rstrip() for line in output if line.strip()]
    print(f"{title}: {status}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return _Step(title, time.perf_counter() - start, status, "\n".join(lines[-_LINES:]))


def _where(frameworks: list[str]) -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        card = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        card = "no CUDA device"
    absent = [f"{name} does not see it" for name in _HAS_DEVICE if name not in frameworks]
    return ", ".join([card, *absent, f"Python {platform.python_version()}", *map(_version, _PACKAGES)]) + "."


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} absent"


if __name__ == "__main__":
    sys.exit(main())
