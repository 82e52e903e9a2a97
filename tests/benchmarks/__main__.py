"""Run the cases, each in a process of its own for each framework, and write the table and the figure."""

from __future__ import annotations

import argparse
import dataclasses
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
from tests.benchmarks.rows import Row

_ROOT = Path(__file__).parents[2]
_OUTPUT, _SO_FAR = _ROOT / "docs" / "performance", _ROOT / "build" / "benchmarks.json"
_ON_GPU = ("torch", "jax")
_NOT_ON_GPU = ("memory", "indices")
# Long, for an answer that changes rarely: measured where it is asked for.
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
    options = parser.parse_args()
    only = options.only
    name, _, framework = (only or "").partition("/")
    if name and (name not in CASES or (framework and framework not in CASES[name].frameworks)):
        parser.error(f"--only {only}: expected one of {', '.join(CASES)}, or such as solves/torch")
    begin = time.perf_counter()
    gpus = {library for library, test in _HAS_GPU.items() if _run(["-c", test]).returncode == 0}
    rows: list[Row] = []
    failures: dict[str, str] = {}
    for case in [CASES[name]] if name else [case for case in CASES.values() if case.name not in _BY_NAME]:
        for library in [framework] if framework else case.frameworks:
            devices = ["cpu"] + ["cuda"] * (library in gpus and case.name not in _NOT_ON_GPU)
            for device in [options.device] if options.device else devices:
                start, before = time.perf_counter(), _of_children()
                label = f"{case.name}, {library} on {device}"
                result = _measure(case.name, library, device)
                if isinstance(result, str):
                    failures[label] = result
                else:
                    rows += result
                    # What is there after a run that was stopped.
                    _SO_FAR.parent.mkdir(exist_ok=True)
                    _SO_FAR.write_text(json.dumps([dataclasses.asdict(row) for row in rows]))
                spent = f"{time.perf_counter() - start:.0f} s, {_of_children() - before:.0f} of processors"
                print(f"{label}: {spent}", file=sys.stderr, flush=True)
    if only or options.device:
        print(report.tables(rows))
    else:
        report.write(_OUTPUT, rows, failures, (time.perf_counter() - begin) / 60)
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
