"""The derivatives of scores by training inputs: a closed form, differences of scores, and refitting."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

import ihvp
from ihvp import errors
from ihvp.influence import blocks


def softmax(scores):
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def closed_form(problem):
    """``1/N ∂(∇C_i · X_j)/∂x_i`` with ``∇C_i · X = (p − t) · Xᵀx`` and ``p = softmax(Wᵀx)``."""
    x, labels = problem.train
    W = problem.weights
    p, t = softmax(x @ W), np.eye(W.shape[1])[labels]
    inverse = np.linalg.solve(problem.hessian, problem.loss.rows(W, problem.test).T)
    rows = []
    for X in inverse.T.reshape(-1, *W.shape):
        s = x @ X
        pushed = p * s - p * np.sum(p * s, axis=1, keepdims=True)
        rows.append(pushed @ W.T + (p - t) @ X.T)
    return np.stack(rows) / len(x)


def test_those_of_softmax_regression_have_a_closed_form(small):
    derivatives, labels = small.influence().on_inputs(small.test)
    assert labels is None
    assert derivatives.shape == (5, 23, 4)
    assert_allclose(derivatives, closed_form(small), rtol=0, atol=1e-8)


def test_they_are_the_slopes_of_the_scores(small):
    influence, step = small.influence(), 1e-5
    x, labels = small.train
    sides = []
    for sign in (1, -1):
        moved = x.copy()
        moved[:, 2] += sign * step
        sides.append(np.asarray(influence.scores(small.test, (moved, labels))))
    slopes = (sides[0] - sides[1]) / (2 * step)
    assert_allclose(influence.on_inputs(small.test)[0][:, :, 2], slopes, rtol=0, atol=1e-8)


def test_blocks_of_any_size_give_the_same(small, monkeypatch):
    influence = small.influence()
    whole = influence.on_inputs(small.test)[0]
    monkeypatch.setattr(blocks, "NUMBERS", 3 * 12)  # two test points and one training example at a time
    assert_allclose(influence.on_inputs(small.test)[0], whole, rtol=0, atol=1e-9)


def test_batches_of_any_size_and_inverse_products_give_the_same(small):
    influence = small.influence()
    whole = influence.on_inputs(small.test)[0]
    batches = [tuple(array[:10] for array in small.train), tuple(array[10:] for array in small.train)]
    products = influence.inverse_products(small.test)
    assert_allclose(influence.on_inputs(products, batches)[0], whole, rtol=0, atol=1e-9)


def test_the_structure_is_that_of_a_batch(small):
    x, labels = small.train
    loss = ihvp.backend.GradientFunction(
        lambda W, batch: small.loss.gradient(W, (batch["x"][0], batch["labels"]))
    )
    named = {"x": [x], "labels": labels}
    objective = ihvp.Objective(params=small.weights, data=named, grad=loss.grad)
    # The differences that products are made of have errors of almost 1e-9.
    found = ihvp.Influence(objective, solver=ihvp.CG(rtol=1e-8)).on_inputs(
        {"x": [small.test[0]], "labels": small.test[1]}
    )
    assert set(found) == {"x", "labels"}
    assert found["labels"] is None
    # The regulariser within the loss does not depend on the inputs.
    assert_allclose(found["x"][0], closed_form(small), rtol=0, atol=1e-7)


def test_single_precision_has_the_error_of_its_differences(small):
    weights = small.weights.astype(np.float32)
    train, test = ((x.astype(np.float32), labels) for x, labels in (small.train, small.test))
    found = small.objective(train, params=weights)
    influence = ihvp.Influence(found, solver=ihvp.CG(rtol=1e-5))
    derivatives = influence.on_inputs(test)[0]
    assert derivatives.dtype == np.float32
    expected = closed_form(small)
    assert_allclose(derivatives, expected, rtol=0, atol=2e-3 * np.abs(expected).max())


def test_data_without_floating_numbers_is_refused(small):
    x = (10 * small.train[0]).astype(np.int64)
    with pytest.raises(errors.DataError, match="no array of floating numbers"):
        small.influence().on_inputs(small.test, (x, small.train[1]))


def test_a_loss_that_cannot_take_the_inputs_is_named(small):
    with pytest.raises(errors.DataError, match="training data"):
        small.influence().on_inputs(small.test, (small.train[0][:, :3], small.train[1]))


# Least squares: what refitting does, and a backend that differentiates by the data


class Regression:
    """``mean (x w − y)² / 2``, or the sum, in closed form."""

    device = "cpu"

    def __init__(self, sums=False):
        self.sums = sums

    def flatten(self, params):
        return params.copy()

    def unflatten(self, vector, like):
        return vector

    def grad(self, loss, params, batch):
        x, y = batch
        return x.T @ (x @ params - y) / self._divisor(y)

    def hvp(self, loss, params, batch, v):
        return batch[0].T @ (batch[0] @ v) / self._divisor(batch[1])

    def _divisor(self, y):
        return 1 if self.sums else len(y)


class Differentiable(Regression):
    def input_derivatives(self, loss, params, batch, v):
        x, y = batch
        along = (x @ v).T
        by_x = v.T[:, None, :] * (x @ params - y)[:, None] + along[:, :, None] * params
        return by_x / self._divisor(y), -along / self._divisor(y)


def least_squares(rng):
    x, y = rng.normal(size=(11, 3)), rng.normal(size=11)
    return (x, y), (rng.normal(size=(2, 3)), rng.normal(size=2))


def fitted(train):
    return np.linalg.lstsq(*train, rcond=None)[0]


def influence_on(train, test, backend, reduction="mean"):
    objective = ihvp.Objective(
        lambda params, batch: 0.0, fitted(train), train, backend=backend, reduction=reduction
    )
    return ihvp.Influence(objective, solver=ihvp.CG(rtol=1e-12)).on_inputs(test)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("batches", [1, 3])
def test_a_backend_that_differentiates_by_the_data_gives_the_same(rng, reduction, batches):
    train, test = least_squares(rng)
    sums = reduction == "sum"
    data = [tuple(array[i::batches] for array in train) for i in range(batches)]
    order = np.concatenate([np.arange(11)[i::batches] for i in range(batches)])
    objective = ihvp.Objective(
        lambda params, batch: 0.0, fitted(train), data, backend=Differentiable(sums), reduction=reduction
    )
    found = ihvp.Influence(objective, solver=ihvp.CG(rtol=1e-12)).on_inputs(test)
    expected = influence_on(train, test, Regression())
    for part, by_differences in zip(found, expected, strict=True):
        assert_allclose(part, by_differences[:, order], rtol=0, atol=1e-8)


def test_the_test_loss_falls_by_them_when_an_input_moves_and_the_model_is_refitted(rng):
    train, test = least_squares(rng)
    by_x, by_y = influence_on(train, test, Differentiable())

    def losses(weights):
        return (test[0] @ weights - test[1]) ** 2 / 2

    step, example, feature = 1e-5, 4, 1
    for place, slope in (
        ((0, (example, feature)), by_x[:, example, feature]),
        ((1, example), by_y[:, example]),
    ):
        sides = []
        for sign in (1, -1):
            moved = [array.copy() for array in train]
            moved[place[0]][place[1]] += sign * step
            sides.append(losses(fitted(moved)))
        assert_allclose(slope, (sides[1] - sides[0]) / (2 * step), rtol=1e-6)
