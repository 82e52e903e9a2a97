"""Scores on the workers of joblib: the bits of one process, whatever the workers are."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager

import joblib
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import ihvp
from ihvp.errors import DataError, WorkerFailed
from ihvp.influence import blocks
from ihvp.influence.store import Store

# On a busy machine loky looks up again the work that it has given up.
_GIVEN_UP = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@contextmanager
def dask():
    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster,
        Client(cluster),
        joblib.parallel_config("dask"),
    ):
        yield


def of_joblib(backend):
    return lambda: joblib.parallel_config(backend, n_jobs=2)


@pytest.fixture
def influence(small, monkeypatch):
    """Tiles have at most 7 columns and 2 rows, so that there is something to spread."""
    objective = small.objective()
    monkeypatch.setattr(blocks, "_EXAMPLES", 7)
    monkeypatch.setattr(blocks, "NUMBERS", 2 * objective.num_params)
    return ihvp.Influence(objective, 0.1, ihvp.Direct())


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("workers", [of_joblib("loky"), of_joblib("threading"), dask])
def test_results_have_the_bits_of_one_process(influence, small, tmp_path, workers):
    scores, top = influence.scores(small.test), influence.top_k(small.test, 5)
    with workers():
        found = influence.scores(small.test)
        best = influence.top_k(small.test, 5)
        kept = influence.scores(small.test, out=tmp_path / "scores")
    assert_array_equal(found, scores)
    assert_array_equal(kept, scores)
    assert_array_equal(best.indices, top.indices)
    assert_array_equal(best.scores, top.scores)


def test_an_interrupted_run_goes_on_with_workers_and_without(influence, small, tmp_path, monkeypatch):
    scores, write, written = influence.scores(small.test), Store.write, []

    def limited(self, *tile):
        if len(written) in (3, 9):
            written.append(None)
            raise KeyboardInterrupt
        written.append(tile[:2])
        write(self, *tile)

    monkeypatch.setattr(Store, "write", limited)
    with joblib.parallel_config("threading", n_jobs=2), pytest.raises(KeyboardInterrupt):
        influence.scores(small.test, out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        influence.scores(small.test, out=tmp_path)
    with joblib.parallel_config("threading", n_jobs=2):
        assert_array_equal(influence.scores(small.test, out=tmp_path), scores)
    places = [place for place in written if place]
    assert len(places) == len(set(places))


def test_removals_take_the_workers_of_joblib(small):
    names = set()

    def train(removed, start):
        names.add(threading.current_thread().name)
        return start

    with joblib.parallel_config("threading", n_jobs=2):
        ihvp.leave_one_out(small.objective(), train, range(6), small.test, damping=0.1, solver=ihvp.Direct())
    assert threading.current_thread().name not in names


@_GIVEN_UP
def test_a_training_that_cannot_be_sent_is_named(small):
    lock = threading.Lock()

    def train(removed, start):
        with lock:
            return start

    options = {"damping": 0.1, "solver": ihvp.Direct(), "n_jobs": 2}
    with pytest.raises(WorkerFailed, match="pickle"):
        ihvp.leave_one_out(small.objective(), train, range(3), small.test, **options)


def test_a_module_that_the_workers_cannot_import_is_named(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def grad(w, x):\n    return w - x.mean(axis=0)\n")
    with monkeypatch.context() as context:
        context.syspath_prepend(tmp_path)
        import only_here
    x = np.arange(6.0).reshape(3, 2)
    influence = ihvp.Influence(ihvp.Objective(params=x.mean(axis=0), data=x, grad=only_here.grad))
    with joblib.parallel_config("loky", n_jobs=2), pytest.raises(WorkerFailed, match=r"No module.*only_here"):
        influence.scores(x)
    del sys.modules["only_here"]


@_GIVEN_UP
def test_what_cannot_be_sent_is_named():
    lock, x = threading.Lock(), np.arange(6.0).reshape(3, 2)

    def grad(w, x):
        with lock:
            return w - x.mean(axis=0)

    influence = ihvp.Influence(ihvp.Objective(params=x.mean(axis=0), data=x, grad=grad))
    with joblib.parallel_config("loky", n_jobs=2), pytest.raises(WorkerFailed, match="cannot pickle"):
        influence.scores(x)


def test_errors_of_the_loss_are_those_of_one_process():
    x = np.arange(6.0).reshape(3, 2)
    calls = []

    def grad(w, x):
        if threading.current_thread() is not threading.main_thread():
            calls.append(0)
            raise ValueError("spoilt")
        return w - x.mean(axis=0)

    influence = ihvp.Influence(ihvp.Objective(params=x.mean(axis=0), data=x, grad=grad))
    with joblib.parallel_config("threading", n_jobs=2), pytest.raises(DataError, match="spoilt"):
        influence.scores(x)
    assert calls
