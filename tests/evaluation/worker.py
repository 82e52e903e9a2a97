"""One method in a process of its own: its damping, its scores, its seconds and its memory."""

from __future__ import annotations

import gc
import json
import multiprocessing
import resource
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import ihvp
from ihvp.errors import LossFailed, SolverError
from ihvp.evaluate import DampingPath, Outcomes
from tests.benchmarks.memory import peak_of, resident
from tests.evaluation import ours, peers
from tests.evaluation.methods import DAMPINGS, Fitted, Method, NotHere
from tests.evaluation.tasks import Trained

_PATH, _CHOOSING, _CHOOSING_ALL, _MEASURING = 15.0, 10.0, 45.0, 30.0
"""Seconds that a method has for all dampings at once, at each, at all one by one, and to be measured."""

_MEMORY = 4 << 30
"""The bytes that a method's process may hold."""

METHODS = {method.slug: method for method in (*ours.METHODS, *peers.METHODS)}


def tuned(method: Method, trained: Trained, outcomes: Outcomes, folder: Path) -> DampingPath:
    """The path of dampings over the outcomes that are for choosing; those that fail are left out."""
    test = trained.split.tuning
    if method.curvature is not None:
        objective = trained.objective()
        curvature = method.curvature(objective)
        # Of a matrix that is indefinite with the smallest, or too slow with it, one after another below.
        with suppress(SolverError, LossFailed, NotHere), _at_most(_PATH):
            return ihvp.evaluate.dampings(objective, outcomes, test, DAMPINGS, curvature)
    started = time.process_time()
    with peers.quiet(), _at_most(_MEASURING):
        fitted, found, last = method.fit(trained, folder), {}, ""
    # From the largest on: the smaller the damping, the longer an iteration takes; smaller ones fail as well.
    for damping in reversed(DAMPINGS):
        if time.process_time() - started > _CHOOSING_ALL:
            break
        try:
            with _at_most(_CHOOSING):
                found[damping] = ihvp.evaluate.lds(_scores(fitted, damping, test), outcomes)
        except Exception as error:  # a peer's error may be of any kind
            last = _short(error)
            break
    if not found:
        raise NotHere(last)
    order = sorted(found)
    return DampingPath(np.array(order), [found[damping] for damping in order])


@contextmanager
def _at_most(limit: float) -> Iterator[None]:
    """NotHere after so many seconds of the processor."""

    def stop(*_: Any) -> None:
        raise NotHere(f"not done after {limit:.0f} s")

    signal.signal(signal.SIGPROF, stop)
    # Again and again: a library may swallow what is raised in it.
    signal.setitimer(signal.ITIMER_PROF, limit, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def measured(method: Method, trained: Trained, damping: float, folder: Path) -> tuple[dict[str, Any], Any]:
    """What it took, and the scores of the test points that judge and of the training examples."""
    kept: list[Any] = []

    def run() -> None:
        start = time.process_time()
        with peers.quiet():
            fitted = method.fit(trained, folder)
        scores = _scores(fitted, damping, trained.split.judged)
        kept.extend([fitted, scores, time.process_time() - start])

    ihvp.GradientDot(trained.objective()).scores(tuple(part[:2] for part in trained.split.tuning))
    before = resident()
    with _at_most(_MEASURING):
        peak = max(peak_of(run) - before, 0)
    fitted, scores, seconds = kept
    if not np.isfinite(scores).all():
        raise NotHere("scores that are not finite")
    own = np.zeros(0)
    if method.on_itself:
        with suppress(NotHere, LossFailed), _at_most(_MEASURING):  # then there is no AUC
            found = np.diagonal(_scores(fitted, damping, trained.split.training))
            own = found if np.isfinite(found).all() else own
    return {"seconds": seconds, "memory": peak}, (scores, own)


def _scores(fitted: Fitted, damping: float, test: Any) -> NDArray[np.float64]:
    with peers.quiet():
        return np.asarray(fitted(damping, *test), dtype=np.float64)


def _short(error: BaseException) -> str:
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return f"needs more than {_MEMORY >> 30} GiB"
    if isinstance(error, NotHere):
        return str(error)
    if isinstance(error.__cause__, NotHere):  # raised in the middle of a loss
        return str(error.__cause__)
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {first}"[:60]


def main(task: str, slug: str, folder: Path) -> None:
    """Choose the damping, and measure with it; what is known already in the task's folder stays."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    gc.freeze()  # A library that collects garbage often does not pay for what the others have loaded.
    # Two processes: what choosing has left would count as memory.
    for step in (_choose, _measure):
        process = multiprocessing.get_context("fork").Process(target=step, args=(task, slug, folder))
        process.start()
        process.join()
        if process.exitcode:
            tell(folder, slug, {"failure": f"the process ended with {process.exitcode}"})


def told(folder: Path, slug: str) -> dict[str, Any]:
    """What is known about a method."""
    file = folder / f"{slug}.json"
    return json.loads(file.read_text()) if file.exists() else {}


def tell(folder: Path, slug: str, news: dict[str, Any]) -> None:
    """Add to it."""
    (folder / f"{slug}.json").write_text(json.dumps(told(folder, slug) | news))


def _choose(task: str, slug: str, folder: Path) -> None:
    method, about = METHODS[slug], told(folder, slug)
    if not method.tuned:
        tell(folder, slug, {"damping": method.damping})
    elif not about.keys() & {"damping", "failure"}:
        kept = np.load(folder / "tuning.npz")
        outcomes = Outcomes(kept["subsets"], kept["losses"])

        def chosen(trained: Trained, scratch: Path) -> dict[str, Any]:
            path = tuned(method, trained, outcomes, scratch)
            curve = np.stack([path.dampings, path.value, path.standard_error]).tolist()
            return {"damping": path.damping, "path": curve}

        _run(task, slug, folder, chosen)


def _measure(task: str, slug: str, folder: Path) -> None:
    about = told(folder, slug)
    if not about.keys() & {"seconds", "failure"}:

        def found(trained: Trained, scratch: Path) -> dict[str, Any]:
            took, (scores, own) = measured(METHODS[slug], trained, about["damping"], scratch)
            np.savez(folder / f"{slug}.npz", scores=scores, own=own)
            return took

        _run(task, slug, folder, found)


def _run(task: str, slug: str, folder: Path, step: Callable[[Trained, Path], dict[str, Any]]) -> None:
    # What needs more fails by itself, and not the machine.
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    with tempfile.TemporaryDirectory() as scratch:
        try:
            news = step(Trained(task, folder), Path(scratch))
        except NotHere as reason:
            news = {"failure": str(reason)}
        except Exception as error:  # a peer's error may be of any kind, and is what the table says
            news = {"failure": _short(error)}
    tell(folder, slug, news)
