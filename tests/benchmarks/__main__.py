"""Run the cases, each in a process of its own for each framework, and write the table and the figure."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks import report
from tests.benchmarks.cases import CASES
from tests.benchmarks.machine import where
from tests.benchmarks.rows import Part, Row

_ROOT = Path(__file__).parents[2]
_OUTPUT = _ROOT / "docs" / "performance"
_ON_GPU = ("torch", "jax")
_NOT_ON_GPU = ("memory", "indices")
# Told in a page of its own, and measured where it is asked for by name.
_BY_NAME = ("language",)
# Threads that wait for each other take more time than small operations do, most of all on a busy machine.
_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
_HAS_GPU = {
    "torch": "import sys, torch; sys.exit(not torch.cuda.is_available())",
    "jax": "import sys, jax; sys.exit(jax.default_backend() != 'gpu')",
}


def main() -> int:
    """0 if everything could be measured, within its bar or not."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", metavar="CASE[/FRAMEWORK]", help="print these rows and write nothing")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="measure there only")
    parser.add_argument("--all", action="store_true", help="also what changes rarely")
    options = parser.parse_args()
    only = options.only
    name, _, framework = (only or "").partition("/")
    if name and (name not in CASES or (framework and framework not in CASES[name].frameworks)):
        parser.error(f"--only {only}: expected one of {', '.join(CASES)}, or such as solves/torch")
    usual = [c for c in CASES.values() if (options.all or c.often) and c.name not in _BY_NAME]
    gpus = {library for library, test in _HAS_GPU.items() if _run(["-c", test]).returncode == 0}
    page = not (only or options.device)
    parts = report.read(_OUTPUT) if page else {}
    failures: dict[str, str] = {}
    for case in [CASES[name]] if name else usual:
        for library in [framework] if framework else case.frameworks:
            devices = ["cpu"] + ["cuda"] * (library in gpus and case.name not in _NOT_ON_GPU)
            for device in [options.device] if options.device else devices:
                start, before = time.perf_counter(), _of_children()
                result = _measure(case.name, library, device)
                label, took = f"{case.name}, {library} on {device}", time.perf_counter() - start
                spent = f"{took:.0f} s, {_of_children() - before:.0f} of processors"
                print(f"{label}: {spent}", file=sys.stderr, flush=True)
                if isinstance(result, str):
                    failures[label] = result
                    continue
                parts[label] = Part(case.name, library, device, where(report.PACKAGES), took, result)
                if page:
                    report.keep(_OUTPUT, parts)  # what is there after a run that was stopped
    if page:
        report.write(_OUTPUT, parts.values(), failures)
    else:
        print(report.tables(list(parts.values())))
    for label, error in failures.items():
        print(f"{label} failed:\n{error}", file=sys.stderr)
    return 1 if failures else 0


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _measure(case: str, framework: str, device: str) -> list[Row] | str:
    """The rows, or why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        done = _run(["-m", "tests.benchmarks.worker", case, framework, device, str(file)])
        if done.returncode:
            return done.stderr[-3000:]
        return [Row(**row) for row in json.loads(file.read_text())]


def _run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = _ONE_THREAD | os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "MPLBACKEND": "agg"}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )


if __name__ == "__main__":
    sys.exit(main())
