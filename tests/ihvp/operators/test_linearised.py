"""Which batches of a Hessian stay linearised, and that products are right whether they are or not."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import ihvp
from ihvp import errors

W = np.array([0.5, -1.0, 2.0])


class Linear:
    """A linearised product, in memory as long as somebody holds it."""

    def __init__(self, matrix):
        self.matrix = matrix

    def __call__(self, v):
        return self.matrix @ v


class Loader:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


@pytest.fixture
def linearizing(regression):
    """The closed-form backend, which can also linearise: 100 bytes an example. It counts both."""

    class Linearizing(type(regression)):
        bytes_each = 100

        def __init__(self):
            super().__init__()
            self.linear = []

        def linearize(self, loss, params, batch):
            x, _ = batch
            linear = Linear(x.T @ x / len(x) * loss(params, batch))
            if self.bytes_each is not None:
                linear.nbytes = self.bytes_each * len(x)
            self.linear.append(weakref.ref(linear))
            return linear

        @property
        def linearized(self):
            return len(self.linear)

        @property
        def alive(self):
            return sum(reference() is not None for reference in self.linear)

    backend = Linearizing()
    backend.loss = regression.loss
    return backend


@pytest.fixture
def batches(rows):
    x, y = rows
    return [(x[:3], y[:3]), (x[3:6], y[3:6]), (x[6:], y[6:])]


@pytest.fixture
def exact(rows):
    x, _ = rows
    return x.T @ x / len(x) @ W


def hessian(backend, data, memory_budget=None, **options):
    return ihvp.Hessian(
        ihvp.Objective(backend.loss, W, data, backend=backend, checks=False, **options), memory_budget
    )


def multiply(matrix, exact, times=3):
    for _ in range(times):
        np.testing.assert_allclose(matrix @ W, exact, rtol=1e-13)


def test_one_batch_in_memory_is_linearised_once(linearizing, rows, exact):
    multiply(hessian(linearizing, rows), exact)
    assert (linearizing.linearized, linearizing.products) == (1, 0)


def test_pieces_of_one_batch_are_linearised_once_each(linearizing, rows, exact):
    multiply(hessian(linearizing, rows, batch_size=2), exact)
    assert (linearizing.linearized, linearizing.products) == (4, 0)


def test_batches_of_a_list_are_linearised_once_each(linearizing, batches, exact):
    multiply(hessian(linearizing, batches), exact)
    assert (linearizing.linearized, linearizing.products) == (3, 0)


def test_batches_of_another_iterable_are_not_linearised(linearizing, batches, exact):
    multiply(hessian(linearizing, Loader(batches)), exact)
    assert (linearizing.linearized, linearizing.products) == (0, 9)


@pytest.mark.parametrize(("budget", "kept"), [(0, 0), (300, 1), (599, 2), (600, 2), (699, 2), (700, 3)])
def test_as_many_batches_are_kept_as_the_budget_holds(linearizing, batches, exact, budget, kept):
    matrix = hessian(linearizing, batches, budget)
    multiply(matrix, exact)
    assert linearizing.alive == kept
    assert linearizing.linearized == kept
    assert linearizing.products == 3 * (3 - kept)


def test_a_batch_larger_than_the_budget_is_not_kept(linearizing, rows, exact):
    matrix = hessian(linearizing, rows, 699)
    multiply(matrix, exact)
    assert linearizing.alive == 0
    assert linearizing.linearized == 1


def test_of_linearisations_that_do_not_tell_their_memory_one_is_kept(linearizing, batches, exact):
    linearizing.bytes_each = None
    matrix = hessian(linearizing, batches)
    multiply(matrix, exact)
    assert (linearizing.linearized, linearizing.alive) == (1, 1)


def test_the_default_is_half_of_what_is_free(linearizing, batches, exact, monkeypatch):
    monkeypatch.setattr("ihvp.operators.passes.free_memory", lambda space: 1200)
    multiply(hessian(linearizing, batches), exact)
    assert linearizing.linearized == 2


def test_where_the_device_does_not_tell_it_is_a_gibibyte(linearizing, batches, exact, monkeypatch):
    monkeypatch.setattr("ihvp.operators.passes.free_memory", lambda space: None)
    linearizing.bytes_each = (1 << 30) // 6
    multiply(hessian(linearizing, batches), exact)
    assert linearizing.linearized == 2


@pytest.mark.parametrize("budget", [-1, 0.5, "1GB"])
def test_budget_that_is_no_number_of_bytes_is_refused(linearizing, rows, budget):
    with pytest.raises(errors.InvalidOption, match=r"memory_budget is .*; expected a number of bytes"):
        hessian(linearizing, rows, budget)


def test_a_batch_that_is_replaced_in_its_list_is_linearised_again(linearizing, batches, exact):
    data = [(x.copy(), y) for x, y in batches]
    data[1] = (2 * data[1][0], data[1][1])
    matrix = hessian(linearizing, data)
    assert not np.allclose(matrix @ W, exact)
    data[1] = batches[1]
    multiply(matrix, exact)
    assert (linearizing.linearized, linearizing.alive) == (4, 3)


def test_parameters_that_are_replaced_on_the_objective_count(linearizing, batches, exact):
    matrix = hessian(linearizing, batches)
    matrix.objective.loss = lambda params, batch: params[0]
    multiply(matrix, W[0] * exact, times=1)
    matrix.objective.params = 3 * W
    multiply(matrix, 3 * W[0] * exact)
    assert (linearizing.linearized, linearizing.alive) == (6, 3)


def test_nothing_is_left_of_an_operator_that_is_dropped(linearizing, batches):
    gc.collect()
    gc.disable()
    try:
        for _ in range(100):
            assert np.isfinite(hessian(linearizing, batches) @ W).all()
            assert linearizing.alive == 0
    finally:
        gc.enable()


def test_blocks_use_the_same_linearisation(linearizing, batches, rows):
    x, _ = rows
    matrix = hessian(linearizing, batches)
    np.testing.assert_allclose(matrix @ np.eye(3), x.T @ x / len(x), rtol=1e-13)
    np.testing.assert_allclose(matrix @ W, x.T @ x / len(x) @ W, rtol=1e-13)
    assert (linearizing.linearized, linearizing.products) == (3, 0)


def test_a_product_that_is_not_finite_names_the_batch(linearizing, batches):
    batches[1] = (np.full((3, 3), np.nan), batches[1][1])
    with pytest.raises(errors.NonFinite, match="on batch 1"):
        hessian(linearizing, batches) @ W


def test_data_that_lost_a_batch_is_refused(linearizing, batches, exact):
    matrix = hessian(linearizing, batches)
    multiply(matrix, exact, times=1)
    batches.pop()
    with pytest.raises(errors.DataError, match="gave 7 examples at first and 6 now"):
        matrix @ W
