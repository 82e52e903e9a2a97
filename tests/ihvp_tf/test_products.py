"""Gradients and products against closed forms."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import ihvp

RTOL = 1e-12


def toy(w, batch):
    return (1 - 2 * w[0] * w[1]) ** 2


def toy_variables():
    return [tf.Variable(1.0, dtype=tf.float64), tf.Variable(1 / 3, dtype=tf.float64)]


def test_toy_product_is_exact(backend):
    product = backend.hvp(toy, toy_variables(), None, np.ones(2))
    np.testing.assert_allclose(product, [20 / 9, 28 / 3], rtol=1e-14)


def test_toy_block_is_the_hessian(backend):
    block = backend.hvp(toy, toy_variables(), None, np.eye(2))
    np.testing.assert_allclose(block, [[8 / 9, 4 / 3], [4 / 3, 8]], rtol=1e-14)


def test_gradient_is_the_closed_form(backend, neuron, losses):
    gradient = backend.grad(losses.of_variables, neuron.variables, neuron.batch)
    np.testing.assert_allclose(gradient, neuron.per_example.mean(0), rtol=RTOL)


def test_product_is_the_closed_form(backend, neuron, losses):
    v = np.arange(5.0)
    product = backend.hvp(losses.of_variables, neuron.variables, neuron.batch, v)
    np.testing.assert_allclose(product, neuron.hessian @ v, rtol=RTOL)


@pytest.mark.parametrize("k", [1, 3])
def test_block_is_the_closed_form(backend, neuron, losses, k):
    block = np.random.default_rng(1).standard_normal((5, k))
    product = backend.hvp(losses.of_variables, neuron.variables, neuron.batch, block)
    assert product.shape == (5, k)
    np.testing.assert_allclose(product, neuron.hessian @ block, rtol=RTOL)


def test_model_and_variables_agree(backend, neuron, losses):
    v = np.arange(5.0)
    of_model = backend.hvp(losses.of_model, neuron.model, neuron.batch, v)
    np.testing.assert_allclose(of_model, neuron.hessian @ v, rtol=RTOL)


def test_results_are_numpy_arrays_that_the_caller_may_write_to(backend, neuron, losses):
    variables = neuron.variables
    for result in (
        backend.grad(losses.of_variables, variables, neuron.batch),
        backend.hvp(losses.of_variables, variables, neuron.batch, np.ones(5)),
        backend.hvp(losses.of_variables, variables, neuron.batch, np.ones((5, 2))),
    ):
        assert type(result) is np.ndarray
        assert result.flags.writeable


def test_product_of_the_identity_does_not_share_memory_with_v(backend):
    variables = [tf.Variable(np.ones(100_000))]
    v = np.ones(100_000)
    product = backend.hvp(lambda p, b: tf.reduce_sum(p[0] ** 2) / 2, variables, None, v)
    product[:] = 7.0
    np.testing.assert_array_equal(v, 1.0)
    np.testing.assert_array_equal(variables[0].numpy(), 1.0)


def test_gauss_newton_product_is_the_closed_form(backend, neuron, losses):
    arguments = (losses.predict, losses.of_outputs, neuron.variables, neuron.batch)
    v = np.arange(5.0)
    np.testing.assert_allclose(backend.gnvp(*arguments, v), neuron.gauss_newton @ v, rtol=RTOL)
    np.testing.assert_allclose(backend.gnvp(*arguments, np.eye(5)), neuron.gauss_newton, rtol=RTOL)


def test_gauss_newton_accepts_nested_outputs(backend, neuron, losses):
    def predict(params, batch):
        return {"t": losses.predict(params, batch)}

    def loss(outputs, batch):
        return losses.of_outputs(outputs["t"], batch)

    product = backend.gnvp(predict, loss, neuron.variables, neuron.batch, np.eye(5))
    np.testing.assert_allclose(product, neuron.gauss_newton, rtol=RTOL)


def test_per_example_gradients_are_the_closed_form(backend, neuron, losses):
    rows = backend.per_example_grads(losses.of_variables, neuron.variables, neuron.batch)
    np.testing.assert_allclose(rows, neuron.per_example, rtol=RTOL)


def test_per_example_gradients_keep_a_leading_dimension_of_one(backend, neuron, losses):
    seen = []

    def loss(params, batch):
        seen.append(batch[0].shape)
        return losses.of_variables(params, batch)

    backend.per_example_grads(loss, neuron.variables, neuron.batch)
    assert {tuple(shape) for shape in seen} == {(1, 5)}


def test_per_example_gradients_of_an_operation_that_cannot_be_vectorised(backend, neuron, losses):
    counter = tf.Variable(0)

    def loss(params, batch):
        counter.assign_add(1)
        return losses.of_variables(params, batch)

    rows = backend.per_example_grads(loss, neuron.variables, neuron.batch)
    np.testing.assert_allclose(rows, neuron.per_example, rtol=RTOL)


def test_repeated_rows_of_an_embedding_add_up(backend):
    table = tf.Variable(np.arange(1.0, 7.0).reshape(3, 2))

    def loss(params, batch):
        return tf.reduce_sum(tf.nn.embedding_lookup(params["table"], batch) ** 3)

    params, ids = {"table": table}, np.array([2, 0, 2])
    counts = np.array([1.0, 0.0, 2.0])[:, None]
    w = table.numpy()
    v = np.linspace(-1, 1, 6)
    np.testing.assert_allclose(backend.grad(loss, params, ids), (3 * counts * w**2).ravel())
    np.testing.assert_allclose(backend.hvp(loss, params, ids, v), (6 * counts * w).ravel() * v)
    np.testing.assert_allclose(backend.hvp(loss, params, ids, np.eye(6)), np.diag((6 * counts * w).ravel()))
    rows = backend.per_example_grads(loss, params, ids)
    np.testing.assert_allclose(rows[1], np.concatenate([3 * w[0] ** 2, np.zeros(4)]))


def test_linear_embedding_has_a_zero_hessian(backend):
    table = [tf.Variable(np.ones((3, 2)))]
    product = backend.hvp(lambda p, b: tf.reduce_sum(tf.gather(p[0], [1, 1])), table, None, np.ones(6))
    np.testing.assert_array_equal(product, np.zeros(6))


def test_unconnected_variable_contributes_zeros(backend):
    variables = [tf.Variable([2.0]), tf.Variable([3.0, 4.0])]

    def loss(params, batch):
        return tf.reduce_sum(params[1] ** 3)

    np.testing.assert_array_equal(backend.grad(loss, variables, None), [0, 27, 48])
    v = np.ones(3, np.float32)
    np.testing.assert_array_equal(backend.hvp(loss, variables, None, v), [0, 18, 24])
    product = backend.gnvp(lambda p, b: p[1], lambda o, b: tf.reduce_sum(o**2), variables, None, v)
    np.testing.assert_array_equal(product, [0, 2, 2])


def test_while_loop_is_differentiated_twice(backend):
    def loss(params, batch):
        power = tf.constant(1.0, tf.float64)
        for _ in tf.range(batch["n"]):
            power = power * params[0]
        return power

    variables = [tf.Variable(2.0, dtype=tf.float64)]
    batch = {"n": np.int32(4)}
    np.testing.assert_allclose(backend.hvp(loss, variables, batch, np.ones(1)), [48.0])
    np.testing.assert_allclose(backend.hvp(loss, variables, batch, np.ones((1, 2))), [[48.0, 48.0]])


def test_map_fn_is_differentiated_twice(backend):
    def loss(params, batch):
        return tf.reduce_sum(tf.map_fn(lambda x: (x * params[0]) ** 3, batch))

    variables = [tf.Variable(2.0, dtype=tf.float64)]
    product = backend.hvp(loss, variables, np.array([1.0, 2.0]), np.ones(1))
    np.testing.assert_allclose(product, [6 * 2 * (1 + 8)])


def test_python_conditions_on_tensors_are_translated(backend):
    def loss(params, batch):
        return params[0] ** 2 if tf.reduce_sum(batch) > 0 else params[0] ** 3

    variables = [tf.Variable(2.0, dtype=tf.float64)]
    assert backend.hvp(loss, variables, np.ones(1), np.ones(1)) == [2.0]
    assert backend.hvp(loss, variables, -np.ones(1), np.ones(1)) == [12.0]


def test_loss_that_is_a_tf_function_works(backend):
    loss = tf.function(toy)
    np.testing.assert_allclose(backend.hvp(loss, toy_variables(), None, np.ones(2)), [20 / 9, 28 / 3])


def test_nested_batches_and_other_leaves_reach_the_loss(backend):
    def loss(params, batch):
        assert batch["name"] == "cube"
        assert batch["none"] is None
        return tf.reduce_sum(batch["arrays"][0] * params[0] ** batch["power"])

    batch = {"arrays": (np.array([2.0]),), "name": "cube", "power": 3, "none": None}
    assert backend.grad(loss, [tf.Variable(2.0, dtype=tf.float64)], batch) == [24.0]


@pytest.mark.parametrize(("dtype", "rtol"), [("float16", 2e-3), ("bfloat16", 2e-2), ("float32", 1e-6)])
def test_vectors_are_float32_at_least(backend, dtype, rtol):
    variables = [tf.Variable(tf.cast(value, dtype)) for value in ([1.0], [1 / 3])]

    def loss(params, batch):
        return tf.reduce_sum((1 - 2 * params[0] * params[1]) ** 2)

    v = np.ones(2, np.float32)
    product = backend.hvp(loss, variables, None, v)
    assert product.dtype == v.dtype == backend.flatten(variables).dtype
    np.testing.assert_allclose(product.astype(float), [20 / 9, 28 / 3], rtol=rtol)
    block = backend.hvp(loss, variables, None, np.stack([v, v], 1))
    np.testing.assert_array_equal(block[:, 1], product)


def test_mixed_dtypes_are_promoted(backend):
    variables = [tf.Variable(1.0, dtype=tf.float32), tf.Variable(1 / 3, dtype=tf.float64)]

    def loss(params, batch):
        return toy([tf.cast(p, tf.float64) for p in params], batch)

    product = backend.hvp(loss, variables, None, np.ones(2))
    assert product.dtype == np.float64
    np.testing.assert_allclose(product, [20 / 9, 28 / 3], rtol=1e-7)


def test_recurrent_layer_has_a_symmetric_hessian(backend):
    layer = keras.layers.LSTM(2, dtype="float64")
    x = np.random.default_rng(0).standard_normal((3, 4, 2))
    layer(x)
    size = backend.flatten(layer).size
    hessian = backend.hvp(lambda m, b: tf.reduce_sum(m(b) ** 2), layer, x, np.eye(size))
    assert np.linalg.norm(hessian) > 0.1
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-12)


def test_bfloat16_parameters_are_solved_in_float32():
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    weights = tf.Variable(tf.zeros(3, tf.bfloat16))

    def loss(params, batch):
        return tf.reduce_mean(tf.square(batch - tf.cast(params[0], tf.float32)))

    objective = ihvp.Objective(loss, [weights], x)
    np.testing.assert_allclose(objective.gradient(), -2 / 3 * x.mean(0), rtol=1e-2)
    found = ihvp.solve(ihvp.Hessian(objective), np.ones(3, np.float32), solver=ihvp.CG(rtol=1e-2)).x
    np.testing.assert_allclose(found, 1.5 * np.ones(3), rtol=2e-2)
