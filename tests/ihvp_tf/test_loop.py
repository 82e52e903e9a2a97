"""Batches of one size in one loop of the graph."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from numpy.testing import assert_allclose

import ihvp


def pieces(neuron, losses, backend, v, size):
    """The same sum by single products."""
    count = len(neuron.x) // size
    cuts = [slice(i * size, (i + 1) * size) for i in range(count)]
    batches = [(neuron.x[rows], neuron.y[rows]) for rows in cuts]
    variables = neuron.variables
    return sum(backend.hvp(losses.of_variables, variables, batch, v) for batch in batches)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("columns", [(), (1,), (4,)])
def test_a_loop_sums_the_products_of_whole_pieces(neuron, losses, backend, size, columns):
    v = np.random.default_rng(1).standard_normal((5, *columns))
    found = backend.hvp_sum(losses.of_variables, neuron.variables, neuron.batch, v, size)
    assert_allclose(found, pieces(neuron, losses, backend, v, size), rtol=1e-12, atol=1e-15)


def test_what_is_no_array_with_rows_belongs_to_every_piece(neuron, losses, backend):
    def scaled(variables, batch):
        return losses.of_variables(variables, batch[:2]) * batch[2] * batch[3]

    batch = (*neuron.batch, 2.0, np.array(0.5))
    found = backend.hvp_sum(scaled, neuron.variables, batch, np.ones(5), 7)
    assert_allclose(found, neuron.hessian @ np.ones(5), rtol=1e-12)


def test_a_piece_has_a_shape_that_the_loss_can_read(neuron, losses, backend):
    def summed(variables, batch):
        return losses.of_variables(variables, batch) * batch[0].shape[0]

    found = backend.hvp_sum(summed, neuron.variables, neuron.batch, np.ones(5), 7)
    assert_allclose(found, 7 * neuron.hessian @ np.ones(5), rtol=1e-12)


def test_loops_of_other_values_and_lengths_trace_no_more(neuron, losses, backend):
    traces = 0

    def loss(variables, batch):
        nonlocal traces
        traces += 1
        return losses.of_variables(variables, batch)

    variables = neuron.variables
    for rows in (7, 5, 3):
        for scale in (1.0, 2.0):
            batch = (neuron.x[:rows], neuron.y[:rows])
            backend.hvp_sum(loss, variables, batch, scale * np.ones(5), 2)
    assert traces <= 2  # the exact number of rows, and then any


def test_a_keras_model_goes_through_the_loop(neuron, losses, backend):
    product = backend.hvp_sum(losses.of_model, neuron.model, neuron.batch, np.ones(5), 7)
    assert_allclose(product, neuron.hessian @ np.ones(5), rtol=1e-12)


def test_moving_averages_stay_as_they_are(neuron, losses, backend):
    variables, average = neuron.variables, tf.Variable(0.0, dtype=tf.float64)

    def loss(variables, batch):
        average.assign_add(tf.reduce_mean(batch[0]))
        return losses.of_variables(variables, batch)

    backend.hvp_sum(loss, variables, neuron.batch, np.ones(5), 2)
    assert average.numpy() == 0.0


def test_a_hessian_over_small_pieces_uses_it(neuron, losses, backend, monkeypatch):
    sizes = []
    plain = type(backend).hvp_sum

    def counted(self, loss, params, batch, v, size):
        sizes.append(size)
        return plain(self, loss, params, batch, v, size)

    monkeypatch.setattr(type(backend), "hvp_sum", counted)
    variables = neuron.variables
    objective = ihvp.Objective(losses.of_variables, variables, neuron.batch, batch_size=2, backend=backend)
    H = ihvp.Hessian(objective)
    assert_allclose(H @ np.ones(5), neuron.hessian @ np.ones(5), rtol=1e-12)
    variables[0].assign_add([0.1, 0.1])
    changed = ihvp.Hessian(ihvp.Objective(losses.of_variables, variables, neuron.batch, backend=backend))
    assert_allclose(H @ np.ones(5), changed @ np.ones(5), rtol=1e-12)
    assert sizes == [2, 2]
