"""Indices of projected gradients: their rows and scores by dense formulas, and what stands in the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_array_equal

import ihvp
from ihvp.errors import (
    DataError,
    InvalidOption,
    MissingFile,
    NonFinite,
    StoreError,
    StoreMismatch,
)
from ihvp.index.records import decode, encode
from ihvp.influence import StoreDamaged, blocks
from ihvp.influence.store import Store

from . import killed_build

N, P, DIM = 60, 30, 8
W = np.linspace(-1, 1, P)


def rows(data):
    x, y = data
    return x * (np.tanh(x @ W) - y)[:, None]


@pytest.fixture
def objective():
    return killed_build.objective()


def data(objective):
    return objective.batches.data


TEST = (np.random.default_rng(5).standard_normal((4, P)), np.array([1.0, -1.0, 1.0, 1.0]))


def build(objective, folder, kind="sparse", dtype="float64", **options):
    return ihvp.build_index(objective, folder, ihvp.Projection(DIM, kind, 3), dtype, **options)


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("kind", ["sparse", "rademacher", "gaussian"])
def test_scores_are_products_of_projections(objective, tmp_path, kind):
    index = build(objective, tmp_path, kind)
    R = index.features.pull_back(np.eye(DIM)).T
    A, B = rows(data(objective)) @ R, rows(TEST) @ R
    assert (len(index), index.dim) == (N, DIM)
    assert relative(index.rows(), A) <= 1e-12
    assert relative(index.scores(TEST), B @ A.T / N) <= 1e-8
    assert relative(index.self_influence(), np.sum(A * A, axis=1) / N) <= 1e-8
    assert_array_equal(index.top_k(TEST, 3).indices, index.scores(TEST).top_k(3).indices)
    other = tuple(array[10:13] for array in data(objective))
    assert relative(index.scores(TEST, other), B @ A[10:13].T / N) <= 1e-8


@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_scores_by_its_own_curvature(objective, tmp_path, damping):
    build(objective, tmp_path)
    index = ihvp.GradientIndex(tmp_path, objective, curvature="gram", damping=damping)
    R = index.features.pull_back(np.eye(DIM)).T
    A, B = rows(data(objective)) @ R, rows(TEST) @ R
    inverse = np.linalg.inv(A.T @ A / N + damping * np.eye(DIM))
    scores = index.scores(TEST)
    assert relative(scores, B @ inverse @ A.T / N) <= 1e-8
    assert scores.residual <= 1e-12
    assert relative(index.self_influence(), np.einsum("ip,pq,iq->i", A, inverse, A) / N) <= 1e-8


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 1e-3), ("bfloat16", 8e-3), ("float32", 1e-6)])
def test_fewer_bits(objective, tmp_path, dtype, bound):
    exact = build(objective, tmp_path / "exact").scores(TEST)
    index = build(objective, tmp_path / "short", dtype=dtype)
    assert index._records.dtype["values"].base.itemsize == {"float32": 4}.get(dtype, 2)
    assert relative(index.scores(TEST), np.asarray(exact)) <= bound


@settings(max_examples=50)
@given(arrays(np.float64, (3, 5), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_records_keep_eleven_bits_of_the_largest_entry(values):
    for dtype, part in (("float16", 2.0**-11), ("bfloat16", 2.0**-8)):
        found = decode(encode(values, dtype), dtype)
        # Subnormal numbers have fewer bits.
        allowed = part * np.abs(values).max(axis=1, keepdims=True) + 1e-38
        assert np.all(np.abs(found - values) <= allowed)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_records_of_the_ends_of_numbers(dtype):
    assert_array_equal(decode(encode(np.array([[1e-300, 0.0]]), dtype), dtype), np.zeros((1, 2)))
    with pytest.raises(NonFinite, match=dtype):
        encode(np.array([[1e39, 1.0]]), dtype)


def test_questions_as_combinations_of_fewer(objective, tmp_path):
    index = build(objective, tmp_path)
    exact = np.asarray(index.scores(TEST))
    whole, half = (index.scores(TEST, query_rank=rank) for rank in (4, 2))
    assert relative(whole, exact) <= 1e-12
    assert 0 < half.residual < 1
    questions, _ = index.questions(TEST, None, False)
    lost = np.linalg.norm(exact - np.asarray(half), axis=1)
    assert np.all(lost <= half.residual * np.linalg.norm(questions, axis=1) * np.linalg.norm(index.rows(), 2))
    assert_array_equal(index.top_k(TEST, 5, query_rank=2).indices, half.top_k(5).indices)
    with pytest.raises(InvalidOption, match="query_rank"):
        index.scores(TEST, query_rank=0)


def test_weights_enter_as_they_do_in_influence(tmp_path):
    x = np.random.default_rng(0).standard_normal((9, 4))
    w = np.arange(9.0)

    def grad(params, batch):
        return (batch[0] * batch[1][:, None]).sum(axis=0) / max(batch[1].sum(), 1e-300)

    objective = ihvp.Objective(params=np.ones(4), data=(x, w), grad=grad, weights=lambda batch: batch[1])
    index = ihvp.build_index(objective, tmp_path, ihvp.Projection(4), "float64")
    found = index.rows() @ index.features.map.project(np.eye(4)).T
    assert relative(found, x * (9 * w / w.sum())[:, None]) <= 1e-12


def test_the_finished_index_is_only_opened(objective, tmp_path, monkeypatch):
    first = build(objective, tmp_path).rows()
    monkeypatch.setattr(Store, "write", None)
    assert_array_equal(build(objective, tmp_path).rows(), first)
    assert ihvp.GradientIndex(tmp_path).projection == ihvp.Projection(DIM, "sparse", 3)
    assert "60 examples, sparse, dim=8" in repr(ihvp.GradientIndex(tmp_path))


@pytest.mark.parametrize("seed", range(20))
def test_an_interrupted_build_goes_on_bit_for_bit(objective, tmp_path, monkeypatch, seed):
    monkeypatch.setattr(blocks, "_EXAMPLES", killed_build.CHUNK)
    expected = build(objective, tmp_path / "whole", dtype="float16").rows()
    left, original = [int(np.random.default_rng(seed).integers(1, N // 4))], Store.write

    def write(store, *chunk):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        original(store, *chunk)

    monkeypatch.setattr(Store, "write", write)
    with pytest.raises(KeyboardInterrupt):
        build(objective, tmp_path / "torn", dtype="float16")
    with pytest.raises(StoreError, match=r"lacks \d+ of 60 examples"):
        ihvp.GradientIndex(tmp_path / "torn", objective)
    monkeypatch.setattr(Store, "write", original)
    assert_array_equal(build(objective, tmp_path / "torn", dtype="float16").rows(), expected)


def test_a_killed_build_goes_on_bit_for_bit(objective, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "_EXAMPLES", killed_build.CHUNK)
    expected = ihvp.build_index(objective, tmp_path / "whole", ihvp.Projection(8, seed=3)).rows()
    call = [sys.executable, str(Path(__file__).with_name("killed_build.py")), str(tmp_path / "torn")]
    run = subprocess.Popen(call)
    journal, end = tmp_path / "torn" / "done.txt", time.monotonic() + 60
    while not (journal.exists() and journal.stat().st_size) and time.monotonic() < end and run.poll() is None:
        time.sleep(0.001)
    run.send_signal(signal.SIGKILL)
    run.wait()
    again = ihvp.build_index(objective, tmp_path / "torn", ihvp.Projection(8, seed=3))
    assert_array_equal(again.rows(), expected)


def test_damaged_rows_are_computed_again(objective, tmp_path):
    expected = build(objective, tmp_path).rows()
    content = bytearray((tmp_path / "gradients.npy").read_bytes())
    content[-5] ^= 1
    (tmp_path / "gradients.npy").write_bytes(content)
    with pytest.warns(StoreDamaged, match=r"gradients\.npy"):
        assert_array_equal(build(objective, tmp_path).rows(), expected)


def changed(objective, **options):
    x, y = data(objective)
    return ihvp.Objective(
        **{"params": objective.params, "data": (x, y), "grad": killed_build.grad, **options}
    )


def test_an_index_of_something_else(objective, tmp_path):
    build(objective, tmp_path)
    with pytest.raises(StoreMismatch, match="seed"):
        ihvp.build_index(objective, tmp_path, ihvp.Projection(DIM, seed=4), "float64")
    x, y = data(objective)
    with pytest.raises(StoreMismatch, match="training data"):
        build(changed(objective, data=(x[::-1].copy(), y)), tmp_path)
    other = changed(objective, params=objective.params + 1e-9)
    for use in (lambda: build(other, tmp_path), lambda: ihvp.GradientIndex(tmp_path, other)):
        with pytest.raises(StoreMismatch, match="parameters"):
            use()
    index = ihvp.GradientIndex(tmp_path, objective, train_loss=lambda w, batch: w)
    with pytest.raises(StoreMismatch, match="training loss"):
        index.scores(TEST, TEST)


def test_what_is_no_index(objective, tmp_path):
    with pytest.raises(MissingFile):
        ihvp.GradientIndex(tmp_path / "nowhere", objective)
    influence = ihvp.Influence(objective, 1.0)
    influence._model._optimum_checked = True
    influence.scores(TEST, out=tmp_path / "scores")
    with pytest.raises(StoreError, match="gradients"):
        ihvp.GradientIndex(tmp_path / "scores", objective)
    build(objective, tmp_path / "index")
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    (tmp_path / "index" / "manifest.json").write_text(json.dumps({**manifest, "numbers": "float16"}))
    with pytest.raises(StoreError, match="damaged"):
        ihvp.GradientIndex(tmp_path / "index", objective)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projection": ihvp.Projection(31)}, "at most 30"),
        ({"projection": 16}, "an ihvp.Projection"),
        ({"projection": ihvp.Projection(8, "factored")}, "predict"),
        ({"projection": ihvp.Projection(8, "eigen")}, "curvature=ihvp.EKFAC"),
        ({"dtype": "int8"}, "dtype"),
        ({"damping": 0.1}, "0 without a curvature"),
        ({"curvature": "gram"}, "ihvp.KFAC"),
        ({"out": "index.zarr"}, "one file"),
    ],
)
def test_bad_options(objective, tmp_path, options, message):
    with pytest.raises(InvalidOption, match=message):
        ihvp.build_index(objective, **{"out": tmp_path / "index", **options})


def test_questions_that_cannot_be_asked(objective, tmp_path):
    index = build(objective, tmp_path)
    with pytest.raises(InvalidOption, match="the objective of the model"):
        ihvp.GradientIndex(tmp_path).scores(TEST)
    with pytest.raises(DataError, match="test data"):
        index.scores((TEST[0][:, :-1], TEST[1]))
    with pytest.raises(NonFinite):
        index.scores((np.full_like(TEST[0], np.nan), TEST[1]))
    with pytest.raises(InvalidOption, match="factored"):
        index.scores_by("layer", TEST)
    with pytest.raises(InvalidOption, match="1 to 60"):
        index.top_k(TEST, 61)
    for options in ({"curvature": "hessian"}, {"damping": 0.1}, {"curvature": "gram", "damping": -1.0}):
        with pytest.raises(InvalidOption):
            ihvp.GradientIndex(tmp_path, objective, **options)


def test_a_singular_curvature_is_named(tmp_path):
    x = np.random.default_rng(0).standard_normal((5, 12))
    objective = ihvp.Objective(params=np.zeros(12), data=x, grad=lambda w, x: w - x.mean(axis=0))
    ihvp.build_index(objective, tmp_path, ihvp.Projection(12), "float64")
    with pytest.raises(InvalidOption, match="is a start"):
        ihvp.GradientIndex(tmp_path, objective, curvature="gram").scores(x)


def test_the_forecast_counts_bytes(objective):
    found = ihvp.index.forecast(objective, ihvp.Projection(DIM), "float16")
    assert (found.examples, found.dim, found.nbytes) == (N, DIM, N * (2 * DIM + 4))
    assert found.seconds > 0
