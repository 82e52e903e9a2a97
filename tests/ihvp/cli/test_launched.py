"""The parts that the processes of one command take."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import ihvp
from ihvp.cli.launched import Rows, shared
from ihvp.data import Batches
from ihvp.errors import MissingCapability

X = np.arange(11.0)
DATA = {
    "in memory": (X, X + 1),
    "of a list": [(X[:1], X[:1] + 1), (X[1:8], X[1:8] + 1), (X[8:], X[8:] + 1)],
}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
@pytest.mark.parametrize("ends", [(0, 5, 11), (0, 0, 1, 8, 11), (0, 1, 2, 3, 11)])
def test_parts_follow_one_another(data, ends):
    parts = [Rows(Batches(data, batch_size=3), *part) for part in pairwise(ends)]
    for _ in range(2):
        found = [np.concatenate([x for x, _ in part] or [X[:0]]) for part in parts]
        assert [len(rows) for rows in found] == np.diff(ends).tolist()
        np.testing.assert_array_equal(np.concatenate(found), X)
    assert all((y == x + 1).all() for part in parts for x, y in part)


def test_processes_that_cannot_add_up_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    objective = ihvp.Objective(params=np.ones(1), data=X, grad=lambda w, x: w - x.mean())
    with pytest.raises(MissingCapability, match=r"started 2 processes.*Start one"), shared(objective):
        pass


def test_one_process_has_all_of_the_data(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    objective = ihvp.Objective(params=np.ones(1), data=X, grad=lambda w, x: w - x.mean())
    with shared(objective) as same:
        assert same is objective
