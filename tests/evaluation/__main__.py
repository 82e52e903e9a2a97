"""Train, score and judge: ``python -m tests.evaluation [--resume] [--only TASK]``."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from tests.evaluation import report, worker
from tests.evaluation.outcomes import JOBS, Judged
from tests.evaluation.tasks import TASKS, Trained

_ROOT = Path(__file__).parents[2]
_BUILD, _PAGE = _ROOT / "build" / "evaluation", _ROOT / "docs" / "evaluation.md"


def main() -> int:
    """Write the page, or with ``--only`` print the table of a task."""
    parser = argparse.ArgumentParser(prog="python -m tests.evaluation", description=__doc__)
    parser.add_argument("--resume", action="store_true", help="keep what is measured, in build/evaluation")
    parser.add_argument(
        "--only", metavar="TASK", choices=list(TASKS), help="print this one and write nothing"
    )
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONPATH": str(_ROOT)}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    names = [options.only] if options.only else list(TASKS)
    for name in names:
        folder = _BUILD / name
        if not options.resume:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        evaluate(name, folder)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    if options.only:
        print(report.table(report.rows(_BUILD / options.only)))
    else:
        report.write(_PAGE, _BUILD)
    return 0


def evaluate(name: str, folder: Path) -> None:
    """Fill the task's folder."""
    trained = Trained(name, folder)
    judged = Judged(trained)
    context = multiprocessing.get_context("forkserver")
    # With all code loaded, also what torch loads at the first gradient: it takes longer than most methods.
    libraries = {module for method in worker.METHODS.values() for module in method.modules}
    context.set_forkserver_preload(["tests.evaluation.worker", "torch._dynamo", *sorted(libraries)])

    def score(slug: str) -> None:
        process = context.Process(target=worker.main, args=(name, slug, folder))
        process.start()
        process.join()

    with ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(score, worker.METHODS))
    for slug in worker.METHODS:
        about = worker.told(folder, slug)
        if not about.keys() & {"lds", "failure"}:
            with np.load(folder / f"{slug}.npz") as found:
                worker.tell(folder, slug, judged.numbers(slug, found["scores"], found["own"]))
    (folder / "bar.json").write_text(json.dumps(judged.bar()))


if __name__ == "__main__":
    sys.exit(main())
