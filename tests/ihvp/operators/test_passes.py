"""How data in memory is cut where the user does not say, and which pieces go through one loop."""

from __future__ import annotations

import numpy as np
import pytest

import ihvp
from ihvp import errors
from ihvp.operators import passes

ROWS = 10


class MeanOfSquares:
    """``mean (x w)² / 2`` in closed form, with linearisations of 100 bytes an example.

    Attributes
    ----------
    sizes : list
        The batches that were linearised, by their numbers of examples.
    loops : list
        The size and number of the pieces of each loop.
    """

    device = "cpu"

    def __init__(self):
        self.sizes, self.loops, self.products = [], [], 0

    def flatten(self, params):
        return params.copy()

    def unflatten(self, vector, like):
        return vector.copy()

    def grad(self, loss, params, batch):
        return loss(batch).T @ (loss(batch) @ params) / len(batch)

    def hvp(self, loss, params, batch, v):
        self.products += 1
        return loss(batch).T @ (loss(batch) @ v) / len(batch)

    def linearize(self, loss, params, batch):
        self.sizes.append(len(batch))

        def product(v):
            return loss(batch).T @ (loss(batch) @ v) / len(batch)

        product.nbytes = 100 * len(batch)
        return product


class Looping(MeanOfSquares):
    def hvp_sum(self, loss, params, batch, v, size):
        count = len(batch) // size
        self.loops.append((size, count))
        pieces = (batch[i * size : (i + 1) * size] for i in range(count))
        return np.sum([loss(piece).T @ (loss(piece) @ v) / size for piece in pieces], axis=0)


class OnlyLooping(Looping):
    linearize = None


class SumOfSquares(Looping):
    def grad(self, loss, params, batch):
        return super().grad(loss, params, batch) * len(batch)

    def hvp(self, loss, params, batch, v):
        return super().hvp(loss, params, batch, v) * len(batch)

    def linearize(self, loss, params, batch):
        mean = super().linearize(loss, params, batch)

        def product(v):
            return mean(v) * len(batch)

        product.nbytes = mean.nbytes
        return product

    def hvp_sum(self, loss, params, batch, v, size):
        return super().hvp_sum(loss, params, batch, v, size) * size


def same(batch):
    return batch


@pytest.fixture
def x(rng):
    return rng.normal(size=(ROWS, 3))


@pytest.fixture
def v(rng):
    return rng.normal(size=3)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """A piece takes 250 bytes, and 3 rows are looked at."""
    monkeypatch.setattr(passes, "_PIECE_BYTES", 250)
    monkeypatch.setattr(passes, "_PIECE_VECTORS", 0)
    monkeypatch.setattr(passes, "_PROBED", 3)
    monkeypatch.setattr(passes, "_LOOPED_ROWS", 2)


def hessian(backend, data, loss=same, budget=None, **options):
    objective = ihvp.Objective(loss, np.ones(3), data, backend=backend, checks=False, **options)
    return ihvp.Hessian(objective, budget)


def check(matrix, x, v, times=2):
    for _ in range(times):
        np.testing.assert_allclose(matrix @ v, x.T @ (x @ v) / len(x), rtol=1e-12)


def test_a_large_batch_is_cut_into_equal_pieces_of_the_fastest_size(x, v):
    backend = MeanOfSquares()
    check(hessian(backend, x), x, v)
    assert backend.sizes == [3, 3, 3, 3, 1]  # a probe, then 4 pieces of ⌈10 / 4⌉
    assert backend.products == 0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_cut_does_not_change_the_product(x, v, reduction):
    backend = SumOfSquares() if reduction == "sum" else Looping()
    check(hessian(backend, x, reduction=reduction), x, v)
    assert len(backend.sizes) == 5


def test_a_batch_that_fits_a_piece_stays_whole(x, v, monkeypatch):
    monkeypatch.setattr(passes, "_PIECE_BYTES", 1000)
    backend = MeanOfSquares()
    check(hessian(backend, x), x, v)
    assert backend.sizes == [3, 10]


def test_a_small_batch_that_stays_whole_is_linearised_once(x, v, monkeypatch):
    monkeypatch.setattr(passes, "_PROBED", 2048)
    monkeypatch.setattr(passes, "_PIECE_BYTES", 1000)
    backend = MeanOfSquares()
    check(hessian(backend, x), x, v)
    assert backend.sizes == [10]


def test_a_piece_takes_several_vectors_at_least(x, v, monkeypatch):
    monkeypatch.setattr(passes, "_PIECE_VECTORS", 20)  # 480 bytes: 2 pieces
    backend = MeanOfSquares()
    check(hessian(backend, x), x, v)
    assert backend.sizes == [3, 5, 5]


def test_the_rest_of_the_pieces_is_not_kept_where_the_budget_ends(x, v):
    backend = MeanOfSquares()
    check(hessian(backend, x, budget=600), x, v, times=3)
    assert backend.sizes == [3, 3, 3]
    assert backend.products == 3 * 2


def test_without_a_budget_nothing_is_linearised(x, v):
    backend = MeanOfSquares()
    check(hessian(backend, x, budget=0), x, v)
    assert backend.sizes == []


def test_on_another_device_a_batch_stays_whole_if_the_budget_holds_it(x, v, monkeypatch):
    monkeypatch.setattr(passes, "on_host", lambda space: False)
    backend = MeanOfSquares()
    check(hessian(backend, x, budget=1000), x, v)
    assert backend.sizes == [3, 10]


def test_on_another_device_pieces_fill_the_budget(x, v, monkeypatch):
    monkeypatch.setattr(passes, "on_host", lambda space: False)
    monkeypatch.setattr(passes, "_PIECE_BYTES", 1)
    backend = MeanOfSquares()
    check(hessian(backend, x, budget=900), x, v)
    assert backend.sizes == [3] + [2 * 1] * 4  # pieces of an eighth of the budget, at most


def test_an_explicit_batch_size_is_taken_as_it_is(x, v):
    backend = MeanOfSquares()
    check(hessian(backend, x, batch_size=4), x, v)
    assert backend.sizes == [4, 4, 2]


def test_a_loss_whose_examples_do_not_add_up_is_not_cut(x, v):
    def centred(batch):
        return batch - batch.mean(axis=0)

    backend = MeanOfSquares()
    matrix = hessian(backend, x, centred)
    for _ in range(2):
        np.testing.assert_allclose(matrix @ v, np.cov(x.T, bias=True) @ v, rtol=1e-12)
    assert backend.sizes == [3, 10]


def test_data_that_is_no_list_of_examples_is_not_cut(v, rng):
    square = rng.normal(size=(ROWS, ROWS))

    def rows_of_the_inverse(batch):
        return np.linalg.solve(batch, np.eye(ROWS))[:, :3]

    backend = MeanOfSquares()
    matrix = hessian(backend, square, rows_of_the_inverse)
    expected = np.linalg.inv(square)[:, :3]
    np.testing.assert_allclose(matrix @ v, expected.T @ (expected @ v) / ROWS, rtol=1e-9)


def test_the_error_of_a_loss_that_always_fails_is_its_own(x, v):
    def failing(batch):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        hessian(MeanOfSquares(), x, failing) @ v


def test_a_product_that_is_not_finite_does_not_name_a_piece(x, v):
    class Overflowing(MeanOfSquares):
        def linearize(self, loss, params, batch):
            product = super().linearize(loss, params, batch)
            product.nbytes = 0
            return product

        def hvp(self, loss, params, batch, v):
            return np.full(3, np.nan)

    with pytest.raises(errors.NonFinite, match="on batch 0"):
        hessian(Overflowing(), x, budget=0) @ v


def test_small_pieces_go_through_one_loop(x, v):
    backend = Looping()
    check(hessian(backend, x, batch_size=2), x, v)
    assert backend.loops == [(2, 5)] * 2
    assert backend.sizes == []


def test_the_ragged_piece_is_multiplied_beside_the_loop(x, v):
    backend = OnlyLooping()
    check(hessian(backend, x, batch_size=4), x, v)
    assert backend.loops == [(4, 2)] * 2


def test_larger_pieces_stay_linearised_instead(x, v):
    backend = Looping()
    check(hessian(backend, x, batch_size=3), x, v)
    assert (backend.sizes, backend.loops) == ([3, 3, 3, 1], [])


def test_larger_pieces_go_through_the_loop_where_they_do_not_all_fit(x, v):
    backend = Looping()
    check(hessian(backend, x, budget=999, batch_size=3), x, v)
    assert backend.loops == [(3, 3)] * 2


@pytest.mark.parametrize("budget", [None, 0])
def test_the_sum_of_a_loop_is_weighted_by_its_examples(x, v, budget):
    backend = SumOfSquares()
    check(hessian(backend, x, budget=budget, batch_size=2, reduction="sum"), x, v)
    assert backend.loops == [(2, 5)] * 2


def test_one_piece_and_a_rest_are_not_worth_a_loop(x, v):
    backend = Looping()
    check(hessian(backend, x, budget=0, batch_size=6), x, v)
    assert (backend.loops, backend.products) == ([], 4)


def test_a_list_of_batches_is_not_looped(x, v):
    backend = Looping()
    check(hessian(backend, [x[:5], x[5:]], budget=0), x, v)
    assert backend.loops == []


def test_arrays_of_texts_are_not_looped(x, v):
    class OfPairs(Looping):
        def hvp(self, loss, params, batch, v):
            return super().hvp(loss, params, batch[0], v)

        def grad(self, loss, params, batch):
            return super().grad(loss, params, batch[0])

    backend = OfPairs()
    check(hessian(backend, (x, np.array(["text"] * ROWS)), budget=0, batch_size=2), x, v)
    assert (backend.loops, backend.products) == ([], 10)


def test_data_on_the_host_is_not_moved_to_another_device_as_a_whole(x, v):
    backend = Looping()
    backend.device = "cuda:0"
    check(hessian(backend, x, budget=0, batch_size=2), x, v)
    assert (backend.loops, backend.products) == ([], 10)
