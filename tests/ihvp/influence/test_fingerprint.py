"""Fingerprints: the same for the same, another for another, in every process."""

from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np
import pytest

import ihvp
from ihvp.data import Batches
from ihvp.influence.fingerprint import of_array, of_batch, of_data, of_function, of_operator

X, Y = np.arange(24.0).reshape(8, 3), np.arange(8)
DECAY = 0.1


def cut(*stops):
    return [(X[a:b], Y[a:b]) for a, b in zip([0, *stops], [*stops, 8], strict=True)]


def test_how_examples_are_cut_does_not_enter():
    whole = of_data(Batches((X, Y)))
    assert whole == of_data(Batches((X, Y), 3)) == of_data(Batches(cut(1, 5))) == of_data(Batches(cut(4)))


@pytest.mark.parametrize(
    "other",
    [
        (X[::-1], Y),
        (X, Y + 1),
        (X.astype(np.float32), Y),
        (X.reshape(8, 3, 1), Y),
        (X[:7], Y[:7]),
        {"x": X, "y": Y},
        (np.where(X == 5, np.nextafter(5, 6), X), Y),
        (np.where(X == 0, -0.0, X), Y),
    ],
)
def test_other_data_has_another(other):
    assert of_data(Batches(other)) != of_data(Batches((X, Y)))


def test_padded_batches_of_other_widths_are_told_apart():
    one, two = (of_data(Batches([X[:4].reshape(shape), X[4:]])) for shape in ((4, 3), (6, 2)))
    assert one != two


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a", "bc"]),
        np.array(["a", None], dtype=object),
        np.array(["2024-01-01"], dtype="datetime64[D]"),
        np.array([True, False]),
        np.zeros((0, 3)),
        np.array([1 + 2j]),
        np.asfortranarray(X),
        X[::2],
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_of_every_kind_have_one(array):
    assert of_array(array) == of_array(array.copy())


def test_entries_that_are_no_arrays_enter_by_value_or_by_type():
    assert of_batch({"x": X, "name": "a"}) != of_batch({"x": X, "name": "b"})
    assert of_batch({"x": X, "extra": object()}) == of_batch({"x": X, "extra": object()})


def scaled(w, batch, *, scale=1.0):
    return scale * DECAY * w


def helped(w, batch):
    return scaled(w, batch)


def of_label(label):
    return lambda w, batch: w[label]


class Loss:
    def __init__(self, decay):
        self.decay = decay
        self._calls = 0

    def __call__(self, w, batch):
        self._calls += 1
        return self.decay * w


def test_a_loss_is_known_by_its_code_and_by_what_it_refers_to(monkeypatch):
    different = [
        of_function(function)
        for function in (
            lambda w, batch: w,
            lambda w, batch: w + 1,
            lambda w, batch, a=1: w,
            lambda w, batch, a=2: w,
            of_label(0),
            of_label(1),
            of_label(X[0]),
            of_label(X[1]),
            scaled,
            helped,
            functools.partial(scaled, scale=2.0),
            functools.partial(scaled, scale=3.0),
            functools.partial(scaled, 2.0),
            of_label([0, 1]),
            of_label([0, 2]),
            of_label({0, 1}),
            of_label({"label": X[0]}),
            of_label({"label": X[1]}),
            of_label({"margin": X[0]}),
            of_label({"labels": [[{"one": 1}]]}),
            of_label({"labels": [[{"one": 2}]]}),
            Loss(0.1),
            Loss(0.2),
            np.sum,
            np.mean,
        )
    ]
    monkeypatch.setitem(globals(), "DECAY", 0.2)
    different += [of_function(scaled), of_function(helped)]
    assert len(set(different)) == len(different)


def test_a_loss_of_two_parts_is_known_by_both():
    def predicted(predict, loss):
        objective = ihvp.Objective(loss, np.ones(2), predict=predict, grad=lambda w, batch: w)
        return of_function(objective._value)

    def double(w, batch):
        return 2 * w

    def triple(w, batch):
        return 3 * w

    found = {predicted(a, b) for a in (double, triple) for b in (double, triple)}
    assert len(found) == 4


def test_what_changes_while_a_loss_runs_does_not_enter():
    loss = Loss(0.1)
    before = of_function(loss)
    loss(1.0, None)
    assert of_function(loss) == before


def test_a_recursive_loss_has_one():
    def depth(w, batch):
        return w if batch is None else depth(w, batch[1:])

    assert of_function(depth) == of_function(depth)


def test_a_container_that_holds_itself_has_one():
    def holding(value):
        container = {"value": value}
        container["self"] = [container]
        return of_label(container)

    assert of_function(holding(1)) == of_function(holding(1))
    assert of_function(holding(1)) != of_function(holding(2))


def test_containers_deeper_than_any_setting_do_not_enter():
    def nested(value):
        for _ in range(100):
            value = [value]
        return of_label(value)

    assert of_function(nested(1)) == of_function(nested(2))


def test_curvatures_are_known_by_what_they_are_made_of(small):
    objective = small.objective()
    values, vectors = np.linalg.eigh(small.hessian)
    other = [
        ihvp.Hessian(objective),
        ihvp.Hessian(small.objective(small.test)),
        ihvp.OPG(objective),
        ihvp.Dense(small.hessian),
        ihvp.Dense(2 * small.hessian),
        ihvp.LowRank.of(values[:3], vectors[:, :3]),
        ihvp.LowRank.of(values[:4], vectors[:, :4]),
        2 * ihvp.Hessian(objective),
        3 * ihvp.Hessian(objective),
        ihvp.Hessian(objective) + 0.5,
        ihvp.Hessian(objective) + ihvp.Dense(small.hessian),
    ]
    assert len({of_operator(A, objective) for A in other}) == len(other)
    assert of_operator(other[0], objective) == of_operator(ihvp.Hessian(objective), objective)


def test_processes_agree():
    program = (
        "import numpy as np; from ihvp.influence.fingerprint import of_function\n"
        "def loss(w, batch, names={'a', 'b', 'c'}): return w if batch in {'x', 'yy', 'zzz'} else len(names)\n"
        "print(of_function(loss))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
