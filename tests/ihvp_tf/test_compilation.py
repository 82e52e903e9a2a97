"""How often a loss is traced: its Python body runs once a trace, so a counter inside it tells."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import tensorflow as tf


class Counted:
    def __init__(self):
        self.traces = 0

    def __call__(self, params, batch):
        self.traces += 1
        return tf.reduce_mean(tf.tanh(tf.linalg.matvec(batch[0], params["w"])) ** 2)


def square(outputs, batch):
    return outputs**2


def problem(examples=5):
    return {"w": tf.Variable(np.linspace(-1.0, 1.0, 3))}, (np.ones((examples, 3)),)


CALLS = {
    "grad": lambda backend, *problem: backend.grad(*problem),
    "hvp": lambda backend, *problem: backend.hvp(*problem, np.ones(3)),
    "block": lambda backend, *problem: backend.hvp(*problem, np.ones((3, 2))),
    "per_example_grads": lambda backend, *problem: backend.per_example_grads(*problem),
    "gnvp": lambda backend, predict, *problem: backend.gnvp(predict, square, *problem, np.ones(3)),
}


@pytest.mark.parametrize("name", CALLS)
def test_second_call_with_new_values_traces_nothing(backend, name):
    loss, (params, batch) = Counted(), problem()
    CALLS[name](backend, loss, params, batch)
    traces = loss.traces
    params["w"].assign(2 * params["w"])
    CALLS[name](backend, loss, params, (2 * batch[0],))
    assert loss.traces == traces


def test_gradient_and_product_trace_once(backend):
    for name in ("grad", "hvp", "block"):
        loss = Counted()
        CALLS[name](backend, loss, *problem())
        assert loss.traces == 1


@pytest.mark.parametrize("name", ["grad", "hvp", "block"])
def test_batches_of_many_sizes_trace_twice(backend, name):
    loss, (params, _) = Counted(), problem()
    for examples in (8, 5, 3, 1, 8, 7):
        CALLS[name](backend, loss, params, problem(examples)[1])
    assert loss.traces == 2


def test_ragged_batches_give_the_same_as_a_fresh_trace(backend, neuron, losses):
    variables, v = neuron.variables, np.arange(5.0)
    for stop in (7, 4, 3):
        product = backend.hvp(losses.of_variables, variables, (neuron.x[:stop], neuron.y[:stop]), v)
        part = type(neuron)(neuron.x[:stop], neuron.y[:stop], neuron.w)
        np.testing.assert_allclose(product, part.hessian @ v, rtol=1e-12)
        rows = backend.per_example_grads(losses.of_variables, variables, part.batch)
        np.testing.assert_allclose(rows, part.per_example, rtol=1e-12)


def test_blocks_of_many_widths_trace_once(backend):
    loss, (params, batch) = Counted(), problem()
    for columns in (5, 2, 1, 7):
        backend.hvp(loss, params, batch, np.ones((3, columns)))
    assert loss.traces == 1


def test_loss_that_needs_exact_shapes_is_traced_for_each(backend):
    def loss(params, batch):
        return tf.reduce_sum(tf.linalg.matvec(batch[0], params["w"]) ** 2) / int(batch[0].shape[0])

    params, _ = problem()
    for examples in (4, 3, 2):
        gradient = backend.grad(loss, params, problem(examples)[1])
        np.testing.assert_allclose(gradient, 2 * params["w"].numpy().sum() * np.ones(3), atol=1e-15)


def test_failure_on_one_batch_keeps_the_traces(backend):
    loss, (params, batch) = Counted(), problem()
    backend.grad(loss, params, batch)
    with pytest.raises(KeyError):
        backend.grad(loss, params, {"x": batch[0]})
    traces = loss.traces
    backend.grad(loss, params, batch)
    assert loss.traces == traces


def test_values_elsewhere_use_the_same_trace(backend):
    loss, (params, batch) = Counted(), problem()
    backend.grad(loss, params, batch)
    backend.grad(loss, backend.unflatten(np.ones(3), params), batch)
    assert loss.traces == 1


def test_equal_losses_share_their_trace(backend):
    class Model:
        traces = 0

        def loss(self, params, batch):
            Model.traces += 1
            return tf.reduce_sum(params["w"] ** 2)

    model, (params, batch) = Model(), problem()
    assert model.loss is not model.loss
    for _ in range(3):
        backend.grad(model.loss, params, batch)
    assert Model.traces == 1


def test_graphs_go_with_their_backend():
    from ihvp_tf._backend import TensorFlowBackend

    class Loss(Counted):
        pass

    loss, (params, batch) = Loss(), problem()
    backend = TensorFlowBackend(params)
    backend.grad(loss, params, batch)
    gone = weakref.ref(loss)
    del loss, backend
    gc.collect()
    assert gone() is None


def test_number_of_kept_graphs_is_bounded(backend, monkeypatch):
    monkeypatch.setattr("ihvp_tf._backend._MOST_GRAPHS", 2)
    params, batch = problem()
    first = Counted()
    for loss in (first, Counted(), Counted(), first):
        backend.grad(loss, params, batch)
    assert first.traces == 2
