"""Scores against their definition in dense float64 linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import ihvp
from ihvp.influence import blocks
from ihvp.influence.tiles import Part, tiles
from ihvp.operators.opg import OPG

from .conftest import CrossEntropy, Exact, Margin


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def pieces(batch, *sizes):
    stops = np.cumsum(sizes)
    return [tuple(array[a:b] for array in batch) for a, b in zip([0, *stops], [*stops, None], strict=True)]


class Loader:
    """Iterated again and again, like a DataLoader; no list and no array."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("solver", [ihvp.CG(rtol=1e-10), ihvp.Direct()], ids=["CG", "Direct"])
def test_all_scores_of_the_digits_are_the_definitions(digits, solver):
    scores = digits.influence(solver=solver).scores(digits.test, test_loss=CrossEntropy())
    assert scores.shape == (297, 1500)
    assert relative(scores, digits.defined(test_loss=CrossEntropy())) <= 1e-8


def test_the_objectives_own_loss_is_both_losses_where_none_is_given(small):
    scores = ihvp.Influence(small.objective(), solver=ihvp.Direct()).scores(small.test)
    assert relative(scores, small.defined(train_loss=small.loss)) <= 1e-12


def test_removal_of_a_helpful_example_raises_the_loss(digits):
    scores = digits.influence(solver=ihvp.Direct()).scores(digits.test, test_loss=CrossEntropy())
    j, i = np.unravel_index(np.argmax(np.asarray(scores)), scores.shape)
    point = tuple(array[j : j + 1] for array in digits.test)
    before, after = (
        CrossEntropy().values(W, point)[0] for W in (digits.weights, digits.retrained(np.array([i])))
    )
    assert scores[j, i] > 0
    assert after - before == pytest.approx(scores[j, i], rel=0.1)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda batch: pieces(batch, 9, 9), id="ragged list"),
        pytest.param(lambda batch: pieces(batch, 1, 20), id="small and large"),
        pytest.param(lambda batch: Loader(pieces(batch, 7, 7, 7)), id="loader"),
    ],
)
def test_batches_give_the_scores_of_their_examples(small, data):
    scores = small.influence(data(small.train)).scores(pieces(small.test, 2, 2))
    assert relative(scores, small.defined()) <= 1e-9


def test_batches_are_no_larger_than_asked_for():
    x = np.arange(46.0).reshape(23, 2)
    objective = ihvp.Objective(params=np.zeros(2), data=x, grad=lambda w, x: w, batch_size=5)
    found = [batch for block, _ in blocks.windows(objective, 12) for batch in block.batches]
    assert [len(batch) for batch in found] == [5, 5, 2, 5, 5, 1]
    assert_array_equal(np.concatenate(found), x)


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_batch_size_does_not_change_the_scores(small, batch_size):
    objective = small.objective(batch_size=batch_size)
    influence = ihvp.Influence(objective, solver=ihvp.CG(rtol=1e-12), train_loss=CrossEntropy())
    assert relative(influence.scores(small.test), small.defined()) <= 1e-9


def test_a_sum_over_the_batch_is_the_same_objective(small):
    objective = small.objective(
        pieces(small.train, 9, 9), loss=CrossEntropy(small.loss.decay, sums=True), reduction="sum"
    )
    influence = ihvp.Influence(objective, solver=ihvp.CG(rtol=1e-12), train_loss=CrossEntropy(sums=True))
    assert relative(influence.scores(small.test), small.defined()) <= 1e-9


def test_another_question_is_asked_with_test_loss(small):
    scores = small.influence().scores(small.test, test_loss=Margin(2))
    assert relative(scores, small.defined(test_loss=Margin(2))) <= 1e-9


def test_damping_is_added_to_the_hessian(small):
    scores = small.influence(damping=0.3).scores(small.test)
    assert relative(scores, small.defined(damping=0.3)) <= 1e-9


def test_train_data_are_other_examples_with_the_weight_of_one_of_n(small):
    others = pieces(small.test, 3)[0]
    scores = small.influence().scores(small.test, others)
    assert relative(scores, small.defined(train=others)) <= 1e-9
    assert_array_equal(small.influence().of_new_points(others, small.test), scores)


def test_the_curvature_of_a_part_of_the_data_is_taken_as_it_is(small):
    part = pieces(small.train, 15)[0]
    influence = small.influence(curvature=ihvp.Hessian(small.objective(part)))
    expected = small.defined(matrix=small.loss.hessian(small.weights, part))
    assert relative(influence.scores(small.test), expected) <= 1e-9


def test_the_curvature_may_be_low_rank(small):
    values, vectors = np.linalg.eigh(small.hessian)
    low = ihvp.LowRank.of(values[-4:], vectors[:, -4:])
    influence = ihvp.Influence(small.objective(), 0.1, train_loss=CrossEntropy(), curvature=low)
    expected = small.defined(matrix=(vectors[:, -4:] * values[-4:]) @ vectors[:, -4:].T, damping=0.1)
    assert relative(influence.scores(small.test), expected) <= 1e-9


def test_the_curvature_may_be_the_outer_product_of_gradients(small):
    J = small.loss.rows(small.weights, small.train)
    influence = small.influence(curvature=OPG(small.objective()), damping=0.1)
    assert relative(influence.scores(small.test), small.defined(matrix=J.T @ J / 23, damping=0.1)) <= 1e-9


def test_float32_stays_float32(small):
    train, test = ((x.astype(np.float32), labels) for x, labels in (small.train, small.test))
    objective = small.objective(train, params=small.weights.astype(np.float32))
    influence = ihvp.Influence(objective, solver=ihvp.CG(rtol=1e-5), train_loss=CrossEntropy())
    scores = influence.scores(test)
    assert scores.dtype == np.float32
    assert relative(scores, small.defined()) <= 1e-4


@pytest.mark.parametrize("numbers", [1, 12 * 4, 12 * 5 - 1])
@pytest.mark.parametrize("ask", ["scores", "self_influence", "top_k", "group", "inverse_products"])
def test_small_blocks_and_tiles_give_the_same(small, monkeypatch, numbers, ask):
    influence = small.influence(pieces(small.train, 6, 7))

    def answer():
        return {
            "scores": lambda: np.asarray(influence.scores(small.test)),
            "self_influence": lambda: np.asarray(influence.self_influence()),
            "top_k": lambda: influence.top_k(small.test, 4).scores,
            "group": lambda: np.asarray(influence.group([[0, 5], [7]], small.test, second_order=True)),
            "inverse_products": lambda: influence.inverse_products(small.test).vectors,
        }[ask]()

    whole = answer()
    monkeypatch.setattr(blocks, "NUMBERS", numbers)
    assert_allclose(answer(), whole, rtol=1e-8, atol=1e-10 * np.abs(whole).max())


@pytest.mark.parametrize(
    ("points", "numbers", "expected"),
    [(297, 1 << 25, [149, 148]), (160, 1 << 25, [160]), (7, 12 * 6, [3, 3, 1]), (3, 1, [1, 1, 1])],
)
def test_solves_are_about_as_wide_as_each_other_within_their_bound(
    small, monkeypatch, points, numbers, expected
):
    influence, widths = small.influence(), []
    solve = influence.inverse.solve
    monkeypatch.setattr(
        influence.inverse, "solve", lambda v, **options: widths.append(v.shape[1]) or solve(v, **options)
    )
    monkeypatch.setattr(blocks, "NUMBERS", numbers)
    rng = np.random.default_rng(0)
    data = rng.normal(size=(points, 4)), rng.integers(0, 3, points)
    influence.inverse_products(data)
    assert widths == expected
    widths.clear()
    influence.self_influence(data)
    assert widths == expected


def test_tiles_are_bounded_for_models_of_few_parameters(small):
    rows = blocks.rows_at_once(12)
    assert rows * rows <= blocks.NUMBERS
    assert rows * 12 <= blocks.NUMBERS


@pytest.mark.parametrize(("count", "expected"), [(2048, [2048]), (2049, [1025, 1024]), (23, [23])])
def test_tiles_of_many_training_examples_are_about_as_large_as_each_other(small, count, expected):
    influence, model = small.influence(), small.influence()._model
    data = tuple(np.resize(array, (count, *array.shape[1:])) for array in small.train)
    part = Part(model, model.points(small.test, None, False), model.training(data))
    found = tiles([part], progress=False)
    assert [tile.shape[1] for _, _, tile in found] == expected
    assert relative(influence.scores(small.test, data)[:, :23], small.defined()[:, :count]) <= 1e-9


def test_a_test_point_without_a_slope_has_scores_of_zero(small):
    x, labels = small.test
    scores = small.influence().scores((np.vstack([0 * x[:1], x[1:]]), labels), test_loss=Margin(0))
    assert_array_equal(scores[0], np.zeros(23))
    assert relative(scores[1:], small.defined(test_loss=Margin(0))[1:]) <= 1e-9


def test_self_influence_is_the_diagonal_of_the_scores(small):
    found = small.influence().self_influence()
    assert found.axes == ("train",)
    assert relative(found, np.diag(small.defined(test=small.train, test_loss=CrossEntropy()))) <= 1e-9


def test_self_influence_of_other_examples(small):
    found = small.influence().self_influence(pieces(small.test, 2))
    expected = np.diag(small.defined(test=small.test, train=small.test, test_loss=CrossEntropy()))
    assert relative(found, expected) <= 1e-9


def test_the_residual_is_the_largest_of_the_solves(small):
    scores = small.influence(solver=ihvp.CG(rtol=1e-3)).scores(small.test)
    x = small.influence(solver=ihvp.CG(rtol=1e-3)).inverse_products(small.test).vectors.T
    v = small.loss.rows(small.weights, small.test).T
    residuals = np.linalg.norm(v - small.hessian @ x, axis=0) / np.linalg.norm(v, axis=0)
    assert scores.residual == pytest.approx(residuals.max(), rel=1e-6)
    assert 0 < scores.residual <= 1e-3


def test_parameters_are_bit_for_bit_the_same(small, tmp_path):
    influence = small.influence()
    before = small.weights.tobytes()
    influence.scores(small.test, out=tmp_path / "scores")
    influence.top_k(small.test, 3)
    influence.self_influence()
    influence.group([1, 2], small.test, second_order=True)
    assert small.weights.tobytes() == before


def test_progress_shows_the_time_left(small, capsys):
    small.influence().scores(small.test, progress=True)
    shown = capsys.readouterr().err
    assert "Influence: " in shown
    assert "/115 [00:00<" in shown


@pytest.mark.parametrize("progress", [False, None])
def test_nothing_is_shown_where_nothing_should_be(small, capsys, progress):
    influence = small.influence()
    influence.scores(small.test, progress=progress)
    influence.self_influence(progress=progress)
    influence.group([1], small.test, second_order=True, progress=progress)
    shown = capsys.readouterr()
    assert shown.out + shown.err == ""


def test_the_backend_of_the_tests_is_right(small):
    objective, v = small.objective(), np.random.default_rng(0).normal(size=(12, 2))
    assert isinstance(objective.backend, Exact)
    assert_allclose(ihvp.Hessian(objective) @ v, small.hessian @ v, atol=1e-14)
    h = 1e-6 * v[:, 0].reshape(4, 3)
    slope = (objective.at(small.weights + h).gradient() - objective.at(small.weights - h).gradient()) / 2e-6
    assert_allclose(slope, small.hessian @ v[:, 0], atol=1e-8)
