"""When the gradients of training examples are formed, and when only their products."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ihvp import errors
from ihvp.influence.blocks import Block
from ihvp.influence.gradients import derivatives_along


class Counting:
    """Wraps a backend, with products of its gradients as a capability."""

    def __init__(self, backend):
        self._backend, self.device = backend, "cpu"
        self.formed, self.multiplied = 0, 0

    def flatten(self, params):
        return self._backend.flatten(params)

    def unflatten(self, vector, like):
        return self._backend.unflatten(vector, like)

    def grad(self, loss, params, batch):
        return self._backend.grad(loss, params, batch)

    def hvp(self, loss, params, batch, v):
        return self._backend.hvp(loss, params, batch, v)

    def per_example_grads(self, loss, params, batch):
        self.formed += 1
        return self._backend.per_example_grads(loss, params, batch)

    def example_products(self, loss, params, batch, v):
        self.multiplied += 1
        return self._backend.per_example_grads(loss, params, batch) @ v


@pytest.fixture
def counting(small):
    return Counting(small.objective().backend)


@pytest.mark.parametrize(("columns", "formed"), [(1, 0), (24, 0), (25, 1)])
def test_few_vectors_are_multiplied_without_gradients(small, counting, columns, formed):
    objective = small.objective(backend=counting)
    x = np.random.default_rng(0).normal(size=(12, columns))
    found = derivatives_along(objective, Block(0, [small.train], 23), x, "training")
    assert (counting.formed, counting.multiplied) == (formed, 1 - formed)
    assert_allclose(found, small.loss.rows(small.weights, small.train) @ x, rtol=1e-12, atol=1e-14)


def test_scores_are_the_same_either_way(small, counting):
    plain, other = small.influence(), small.influence()
    other.objective.backend = counting
    assert_allclose(other.scores(small.test), plain.scores(small.test), rtol=1e-12, atol=1e-15)
    assert counting.multiplied == 1


def test_batches_of_a_block_are_joined(small, counting):
    x = np.random.default_rng(0).normal(size=(12, 2))
    batches = [tuple(array[:9] for array in small.train), tuple(array[9:] for array in small.train)]
    found = derivatives_along(small.objective(backend=counting), Block(0, batches, 23), x, "training")
    assert_allclose(found, small.loss.rows(small.weights, small.train) @ x, rtol=1e-12, atol=1e-14)


def test_a_product_that_is_not_finite_names_the_examples(small, counting):
    spoilt = small.train[0].copy()
    spoilt[3] = np.nan
    block = Block(7, [(spoilt, small.train[1])], 23)
    with pytest.raises(errors.NonFinite, match="training examples 7 to 29"):
        derivatives_along(small.objective(backend=counting), block, np.ones((12, 1)), "training")
