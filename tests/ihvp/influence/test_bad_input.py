"""Input that cannot work is named, before much is computed."""

from __future__ import annotations

import numpy as np
import pytest

import ihvp
from ihvp.errors import (
    DataError,
    EmptyData,
    InvalidOption,
    NonFinite,
    NotReiterable,
    OrderChanges,
    UnequalBatches,
)

from .conftest import CrossEntropy

ASK = {
    "scores": lambda influence, test, train: influence.scores(test, train),
    "top_k": lambda influence, test, train: influence.top_k(test, 1, train),
    "of_new_points": lambda influence, test, train: influence.of_new_points(train, test),
}
ask = pytest.mark.parametrize("ask", ASK.values(), ids=ASK)


@ask
def test_a_test_batch_of_another_structure(small, ask):
    x, labels = small.test
    for strange in (x, (x, labels, labels), {"x": x, "y": labels}, (x[0], labels)):
        with pytest.raises(UnequalBatches, match=r"test data is .*; expected \[2-d array, 1-d array\]|rows"):
            ask(small.influence(), strange, small.train)


def test_another_structure_is_welcome_with_a_loss_of_its_own(small):
    class Named(CrossEntropy):
        def values(self, W, batch):
            return super().values(W, (batch["x"], batch["y"]))

        def rows(self, W, batch):
            return super().rows(W, (batch["x"], batch["y"]))

        def gradient(self, W, batch):
            return super().gradient(W, (batch["x"], batch["y"]))

    x, labels = small.test
    found = small.influence().scores({"x": x, "y": labels}, test_loss=Named())
    assert np.allclose(found, small.influence().scores(small.test, test_loss=CrossEntropy()), rtol=1e-9)


@ask
@pytest.mark.parametrize("side", ["test", "training"])
@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda x, labels: (x, labels + 1), id="labels out of range"),
        pytest.param(lambda x, labels: (x[:, :3], labels), id="width"),
        pytest.param(lambda x, labels: (x, labels.astype(float)), id="labels of another dtype"),
    ],
)
def test_examples_that_the_loss_cannot_take(small, ask, side, spoil):
    strange = spoil(*small.test)
    test, train = (strange, small.train) if side == "test" else (small.test, strange)
    with pytest.raises(DataError, match=rf"The loss failed on the {side} data.*Expected examples") as caught:
        ask(small.influence(), test, train)
    assert caught.value.__cause__ is not None


@ask
@pytest.mark.parametrize("side", ["test", "training"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_examples_that_are_not_finite(small, ask, side, value):
    x, labels = small.test[0].copy(), small.test[1]
    x[2, 1] = value
    test, train = ((x, labels), small.train) if side == "test" else (small.test, (x, labels))
    with np.errstate(all="ignore"), pytest.raises(NonFinite, match=f"{side} examples 0 to 4"):
        ask(small.influence(), test, train)


class Silent(CrossEntropy):
    """For a label out of range the value is NaN and the gradient zero, as of JAX."""

    def values(self, W, batch):
        known = batch[1] < W.shape[1]
        return np.where(known, super().values(W, (batch[0], np.where(known, batch[1], 0))), np.nan)

    def rows(self, W, batch):
        known = batch[1] < W.shape[1]
        return super().rows(W, (batch[0], np.where(known, batch[1], 0))) * known[:, None]

    def gradient(self, W, batch):
        return self.rows(W, batch).mean(axis=0)


@pytest.mark.parametrize(
    "call",
    [
        lambda influence, test: influence.scores(test),
        lambda influence, test: influence.top_k(test, 2),
        lambda influence, test: influence.self_influence(),
        lambda influence, test: influence.group([1, 2], test),
        lambda influence, test: influence.on_inputs(test),
        lambda influence, test: influence.inverse_products(test),
    ],
    ids=["scores", "top_k", "self_influence", "group", "on_inputs", "inverse_products"],
)
@pytest.mark.parametrize("lost_in", ["loss", "train_loss"])
def test_labels_out_of_range_in_the_objectives_own_data(small, call, lost_in):
    x, labels = small.train
    spoilt = x, np.where(np.arange(23) == 7, 3, labels)
    bounded = Bounded(small.loss.decay)
    loss, train_loss = (Silent(small.loss.decay), None) if lost_in == "loss" else (bounded, Silent())
    objective = small.objective(spoilt, loss=loss)
    influence = ihvp.Influence(objective, 0.1, ihvp.CG(), train_loss=train_loss)
    with np.errstate(all="ignore"), pytest.raises(NonFinite, match="training examples 0 to 22"):
        call(influence, small.test)


class Bounded(CrossEntropy):
    """Has a value for every label."""

    def values(self, W, batch):
        return super().values(W, (batch[0], np.minimum(batch[1], W.shape[1] - 1)))

    def rows(self, W, batch):
        return super().rows(W, (batch[0], np.minimum(batch[1], W.shape[1] - 1)))

    def gradient(self, W, batch):
        return self.rows(W, batch).mean(axis=0)


def test_the_objectives_own_data_is_looked_at_once(small):
    class Counting(CrossEntropy):
        passes = 0

        def values(self, W, batch):
            Counting.passes += len(batch[0]) == 23
            return super().values(W, batch)

    influence = ihvp.Influence(small.objective(loss=Counting(small.loss.decay)), solver=ihvp.CG())
    for _ in range(3):
        influence.scores(small.test)
    influence.self_influence()
    assert Counting.passes == 1


@pytest.mark.parametrize("loss", [3.0, "a", [1]])
def test_a_loss_that_is_no_function(small, loss):
    influence = small.influence()
    with pytest.raises(InvalidOption, match=r"train_loss is .*; expected a function"):
        ihvp.Influence(small.objective(), train_loss=loss)
    for call in (influence.scores, influence.inverse_products, influence.on_inputs):
        with pytest.raises(InvalidOption, match=r"test_loss is .*; expected a function"):
            call(small.test, test_loss=loss)
    with pytest.raises(InvalidOption, match=r"test_loss is .*; expected a function"):
        influence.group([1], small.test, loss, second_order=True)


@ask
@pytest.mark.parametrize("side", ["test", "train"])
@pytest.mark.parametrize("empty", [[], (np.zeros((0, 4)), np.zeros(0, int))], ids=["no batch", "no rows"])
def test_no_examples(small, ask, side, empty):
    with pytest.raises(EmptyData):
        ask(small.influence(), *((empty, small.train) if side == "test" else (small.test, empty)))


@ask
@pytest.mark.parametrize("side", ["test", "train"])
def test_a_generator(small, ask, side):
    once = iter([small.test])
    with pytest.raises(NotReiterable):
        ask(small.influence(), *((once, small.train) if side == "test" else (small.test, once)))


class Shuffled:
    """A loader that draws another order at each pass."""

    def __init__(self, batch):
        self.batch, self.rng = batch, np.random.default_rng(0)

    def __iter__(self):
        order = self.rng.permutation(len(self.batch[0]))
        for rows in np.array_split(order, 3):
            yield tuple(array[rows] for array in self.batch)


@ask
@pytest.mark.parametrize("side", ["test", "training"])
def test_a_shuffling_loader(small, ask, side):
    data = Shuffled(small.train)
    with pytest.raises(OrderChanges, match=f"{side} data is .*Shuffled.*Turn shuffling"):
        ask(small.influence(), *((data, small.train) if side == "test" else (small.test, data)))


@pytest.mark.parametrize(
    "call",
    [
        lambda influence, test: influence.scores(test),
        lambda influence, test: influence.self_influence(),
        lambda influence, test: influence.group([1], test),
    ],
)
def test_a_shuffling_loader_in_the_objective(small, call):
    with pytest.raises(OrderChanges):
        call(small.influence(Shuffled(small.train)), small.test)


class Sampled:
    """A loader that gives fewer (or more) batches from the n-th pass on."""

    def __init__(self, batch, full_passes, change):
        self.batch, self.full, self.change = batch, full_passes, change

    def __iter__(self):
        self.full -= 1
        for part in range(3 + (self.change if self.full < 0 else 0)):
            yield tuple(array[part : part + 5] for array in self.batch)


# Two passes compare the first batch, one its structure with the training's, one counts and one takes values.
@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize(
    ("call", "passes"),
    [
        (lambda influence, test, data: influence.scores(test, data), 4),
        (lambda influence, test, data: influence.scores(data, test), 5),
        (lambda influence, test, data: influence.self_influence(data), 4),
        (lambda influence, test, data: influence.inverse_products(data), 5),
    ],
    ids=["training", "test", "self-influence", "products"],
)
def test_data_of_another_length_at_a_later_pass(small, call, passes, change):
    with pytest.raises(DataError, match="15 examples at first and"):
        call(small.influence(), small.test, Sampled(small.train, passes, change))


@pytest.mark.parametrize("k", [0, -1, 24, 2.0, True, "3", None])
def test_k_is_a_number_of_training_examples(small, k):
    with pytest.raises(InvalidOption, match=r"k is .*; expected an integer from 1 to 23"):
        small.influence().top_k(small.test, k)


def test_another_ranking(small):
    with pytest.raises(InvalidOption, match="which is 'best'"):
        small.influence().top_k(small.test, 2, which="best")


def test_options_are_looked_at_before_any_solve(small, monkeypatch):
    influence = small.influence()
    monkeypatch.setattr(influence.inverse, "solve", lambda *args, **kwargs: pytest.fail("work was done"))
    for options in ({"k": 24}, {"k": 2, "which": "best"}):
        with pytest.raises(InvalidOption):
            influence.top_k(small.test, **options)


def test_what_is_no_objective():
    with pytest.raises(InvalidOption, match=r"an ihvp\.Objective"):
        ihvp.Influence(lambda w: w)


@pytest.mark.parametrize("curvature", [ihvp.Dense(np.eye(3)), ihvp.Dense(np.eye(12, dtype=np.float32)), 1.0])
def test_a_curvature_of_other_parameters(small, curvature):
    with pytest.raises(InvalidOption, match="a LinearOperator on the 12 parameters"):
        small.influence(curvature=curvature)


@pytest.mark.parametrize("damping", [-1.0, np.nan, "0.1"])
def test_a_damping_that_is_none(small, damping):
    with pytest.raises(InvalidOption, match="damping is"):
        small.influence(damping=damping)


def test_errors_of_interruption_and_memory_are_not_the_datas(small, monkeypatch):
    for error in (KeyboardInterrupt, MemoryError):

        class Failing(CrossEntropy):
            def rows(self, W, batch, error=error):
                raise error

        with pytest.raises(error):
            small.influence().scores(small.test, test_loss=Failing())


def test_a_solve_that_misses_its_tolerance_is_an_error(small):
    solver = ihvp.CG(rtol=1e-12, max_iterations=1)
    with pytest.raises(ihvp.errors.NotConverged):
        small.influence(solver=solver).scores(small.test)


def test_indefinite_curvature_is_an_error_with_a_damping_that_would_do(small):
    influence = small.influence(curvature=ihvp.Dense(small.hessian - np.eye(12)))
    with pytest.raises(ihvp.errors.IndefiniteCurvature, match="damping"):
        influence.scores(small.test)
