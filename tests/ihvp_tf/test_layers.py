"""Models opened at their layers: ``Σ g aᵀ`` is the gradient, for all and for single examples."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from ihvp.errors import VectorError
from ihvp_tf._backend import TensorFlowBackend

B, LENGTH, WIDTH = 4, 8, 6
EPSILON = 1e-12


@pytest.fixture(autouse=True)
def float64():
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((B, LENGTH, WIDTH))


def sequence(*layers, shape=(LENGTH, WIDTH), dtype=None):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *layers])


def call(model, batch):
    return model(batch[0])


def gradients(predict, params, variables, batch, cotangents):
    """By a tape over the plain model, ``(P, V)``, for each row of the cotangents."""
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(variables)
        outputs = tf.nest.flatten(predict(params, batch))
        flat = tf.concat([tf.reshape(output, [-1]) for output in outputs], 0)
    columns = []
    for row in cotangents:
        weights = tf.constant(row, flat.dtype)
        parts = tape.gradient(flat, variables, output_gradients=weights, unconnected_gradients="zero")
        columns.append(np.concatenate([tf.convert_to_tensor(part).numpy().reshape(-1) for part in parts]))
    return np.stack(columns, 1)


def outer(layer, inputs, pulled):
    """``Σ_s g aᵀ`` of each example, ``(B, V, groups, d_out, d_in)``, 1 for the bias among the inputs."""
    if layer.one_hot:
        inputs = np.eye(layer.d_in)[inputs][:, :, None]
    if layer.bias is not None:
        inputs = np.concatenate([inputs, np.ones_like(inputs[..., :1])], -1)
    return np.einsum("vnsgo,nsgi->nvgoi", pulled, inputs)


def check(predict, params, batch, left_out=(), rtol=EPSILON, backend=None):
    """Compares with the tape; gives the open model and the names of its layers."""
    backend = backend or TensorFlowBackend(params)
    variables = [getattr(leaf, "value", leaf) for leaf in getattr(params, "trainable_variables", [])]
    variables = variables or tf.nest.flatten(params)
    opened = backend.open(predict, params, batch)
    count = len(tf.nest.flatten(batch)[0])
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(shape) for shape in opened.shapes]
    alone = [np.where(np.arange(count).reshape(-1, *[1] * (y.ndim - 1)) == count - 1, y, 0) for y in arrays]
    cotangents = np.stack([np.concatenate([y.ravel() for y in every]) for every in (arrays, alone)])

    batch = tf.nest.map_structure(tf.constant, batch)
    outputs = tf.nest.flatten(predict(params, batch))
    np.testing.assert_allclose(opened.outputs(), np.concatenate([np.ravel(y) for y in outputs]), rtol)
    wanted = gradients(predict, params, variables, batch, cotangents)
    pulled = opened.pull_back(cotangents)
    seen = np.zeros(len(wanted), int)
    for layer, inputs, slopes in zip(opened.layers, opened.inputs, pulled, strict=True):
        own = () if layer.one_hot else (layer.groups, layer.d_in)
        assert inputs.shape == (count, inputs.shape[1], *own)
        assert slopes.shape == (2, count, inputs.shape[1], layer.groups, layer.d_out)
        found, right = outer(layer, inputs, slopes), layer.read(wanted)
        close = {"atol": rtol * np.abs(wanted).max(), "rtol": 0}
        np.testing.assert_allclose(found.sum(0)[0], right[0], **close)
        # The outputs of one example lead only to the gradient of that example.
        np.testing.assert_allclose(found[-1], right[[1, 1]], **close)
        for part in layer.slices:
            seen[part] += 1
    assert [name for name, part in backend.blocks(params).items() if not seen[part].all()] == list(left_out)
    assert seen.max() <= 1
    return opened, [layer.name for layer in opened.layers]


L = keras.layers
SAME, STRIDED = {"padding": "same"}, {"strides": 2}


def convolutions(kind, shape, kernel, dilations, channels=4, **options):
    """One of every kind after the other."""
    dilated = {"dilation_rate": dilations}
    every = [{}, SAME, SAME | STRIDED, dilated, SAME | dilated, STRIDED]
    width = [channels] if kind in (L.Conv1D, L.Conv2D, L.Conv3D, L.SeparableConv2D) else []
    made = [kind(*width, kernel, activation="tanh", **(options | given)) for given in every]
    return sequence(*made, L.Dense(2), shape=shape)


MODELS = {
    "mlp": lambda: sequence(L.Flatten(), L.Dense(4, activation="tanh"), L.Dense(3, use_bias=False)),
    "positions": lambda: sequence(L.Dense(4, activation="gelu"), L.TimeDistributed(L.Dense(3)), L.Dense(2)),
    "contraction": lambda: sequence(
        L.EinsumDense("abc,cd->abd", output_shape=(LENGTH, 5), bias_axes="d"),
        L.EinsumDense("abc,bcd->abd", output_shape=(LENGTH, 4), bias_axes="bd", activation="tanh"),
        L.EinsumDense("abc,cbd->adb", output_shape=(3, LENGTH), activation="tanh"),
        L.EinsumDense("abc,bcde->aed", output_shape=(2, 5), bias_axes="ed"),
    ),
    "embedding": lambda: sequence(L.Embedding(5, 3), L.Dense(2), shape=(LENGTH,), dtype="int32"),
    "conv1d": lambda: convolutions(L.Conv1D, (20, 2), 3, 2),
    "conv1d causal": lambda: sequence(L.Conv1D(4, 3, padding="causal", dilation_rate=2), L.Dense(2)),
    "conv2d": lambda: convolutions(L.Conv2D, (20, 12, 1), (3, 2), (2, 1)),
    "conv2d along": lambda: sequence(L.Conv2D(2, 2, dilation_rate=(1, 2)), L.Dense(2), shape=(5, 6, 2)),
    "conv3d": lambda: convolutions(L.Conv3D, (9, 8, 7, 1), 2, (1, 2, 1)),
    "depthwise1d": lambda: convolutions(L.DepthwiseConv1D, (20, 2), 3, 2),
    "depthwise2d": lambda: convolutions(L.DepthwiseConv2D, (20, 24, 1), (3, 2), 2, depth_multiplier=2),
    "separable": lambda: convolutions(L.SeparableConv2D, (20, 12, 1), (3, 2), 2),
    "in groups": lambda: sequence(
        L.Conv1D(6, 3, groups=2, dilation_rate=2, padding="same"),
        L.Reshape((LENGTH, 1, 6)),
        L.Conv2D(6, (3, 1), groups=3, strides=2),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_products_of_both_sides_are_the_gradient(name, x):
    model, rng = MODELS[name](), np.random.default_rng(0)
    given = (
        rng.integers(0, 5, (B, LENGTH))
        if name == "embedding"
        else rng.standard_normal((B, *model.input_shape[1:]))
    )
    check(call, model, (given,))


def test_attention(x):
    given = keras.Input((LENGTH, WIDTH))
    model = keras.Model(given, L.MultiHeadAttention(2, 3, value_dim=4)(given, given))
    _, names = check(call, model, (x,))
    assert [name.rpartition("/")[2] for name in names] == ["query", "key", "value", "attention_output"]


@pytest.mark.parametrize("name", ["contraction", "embedding", "conv1d causal", "conv2d along"])
def test_batches_of_any_size(name):
    model, rng = MODELS[name](), np.random.default_rng(0)
    shape = model.input_shape[1:]
    x = rng.integers(0, 5, (B, *shape)) if name == "embedding" else rng.standard_normal((B, *shape))
    backend = TensorFlowBackend(model)
    for size in (2, 3):  # the second one is traced for all others
        opened = backend.open(call, model, (x[:size],))
        opened.pull_back(np.ones((size, opened.outputs().size)))
    check(call, model, (x,), backend=backend)


def test_single_precision(x):
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    model = sequence(L.Conv1D(4, 3, activation="tanh"), L.Dense(2))
    opened, _ = check(call, model, (x.astype(np.float32),), rtol=1e-5)
    assert opened.outputs().dtype == np.float32
    assert opened.inputs[0].dtype == np.float32


def test_mixed_precision_is_seen_through_its_casts(x):
    layer = L.Dense(3, dtype=keras.DTypePolicy("mixed_bfloat16"))
    model = sequence(layer)
    opened = TensorFlowBackend(model).open(call, model, (x,))
    assert [seen.bias for seen in opened.layers] == [3 * WIDTH]


def test_a_layer_that_is_used_twice_appears_once():
    w = {"w": tf.Variable(np.random.default_rng(0).standard_normal((3, 3))), "b": tf.Variable(np.ones(3))}

    def predict(w, batch):
        return tf.tanh(tf.tanh(batch @ w["w"] + w["b"]) @ w["w"] + w["b"])

    opened, names = check(predict, w, np.random.default_rng(1).standard_normal((B, 3)))
    assert names == ["w"]
    assert opened.inputs[0].shape == (B, 2, 1, 3)
    assert opened.layers[0].bias == 0


def matrix(*shape):
    return tf.Variable(np.random.default_rng(len(shape)).standard_normal(shape) / 2)


PLAIN = {
    # name: parameters, predict, blocks left out
    "transposed": ({"w": matrix(3, WIDTH)}, lambda w, x: tf.matmul(x, w["w"], transpose_b=True), []),
    "from the left": ({"w": matrix(3, WIDTH)}, lambda w, x: tf.transpose(w["w"] @ tf.transpose(x[:, 0])), []),
    "transposed input": (
        {"w": matrix(WIDTH, 3)},
        lambda w, x: tf.matmul(tf.transpose(x[:, 0]), w["w"], True),
        [],
    ),
    "reshaped": ({"w": matrix(WIDTH * 3)}, lambda w, x: tf.matmul(x, tf.reshape(w["w"], (WIDTH, 3))), []),
    "stacked": ({"w": matrix(2, WIDTH, WIDTH)}, lambda w, x: tf.tanh(x[:, 0] @ w["w"][0]) @ w["w"][1], []),
    "split": (
        {"w": matrix(2 * WIDTH, 2)},
        lambda w, x: tf.stack([x[:, i] @ part for i, part in enumerate(tf.split(w["w"], 2))], 1),
        [],
    ),
    "columns": ({"w": matrix(WIDTH, 4)}, lambda w, x: x[:, 0] @ w["w"][:, :2], ["w"]),
    "contraction": ({"w": matrix(2, WIDTH, 3)}, lambda w, x: tf.einsum("...i,hik->...hk", x, w["w"]), []),
    "two axes": ({"w": matrix(LENGTH, WIDTH, 3)}, lambda w, x: tf.tensordot(x, w["w"], [[1, 2], [0, 1]]), []),
    "vector": ({"w": matrix(WIDTH)}, lambda w, x: tf.linalg.matvec(x, w["w"]), []),
    "one number added": (
        {"b": tf.Variable(0.5, dtype=tf.float64), "w": matrix(WIDTH, 1)},
        lambda w, x: x @ w["w"] + w["b"],
        [],
    ),
    "bias of two": (
        {"b": matrix(3), "u": matrix(WIDTH, 3), "w": matrix(WIDTH, 3)},
        lambda w, x: (x @ w["w"] + w["b"]) * (x**2 @ w["u"] + w["b"]),
        ["b"],
    ),
    "bias of a sum": (
        {"b": matrix(3), "u": matrix(WIDTH, 3), "w": matrix(WIDTH, 3)},
        lambda w, x: x @ w["w"] + x**2 @ w["u"] + w["b"],
        ["b"],
    ),
    "also without bias": (
        {"b": matrix(3), "w": matrix(WIDTH, 3)},
        lambda w, x: {"a": (y := x @ w["w"]) + w["b"], "b": y},
        ["b"],
    ),
    "bias by position": (
        {"b": matrix(LENGTH, 3), "w": matrix(WIDTH, 3)},
        lambda w, x: x @ w["w"] + w["b"],
        ["b"],
    ),
    "also a number": ({"w": matrix(WIDTH, 3)}, lambda w, x: x @ w["w"] * tf.reduce_sum(w["w"] ** 2), ["w"]),
    "product of weights": (
        {"u": matrix(WIDTH, B), "w": matrix(B, 3)},
        lambda w, x: x @ (w["u"] @ w["w"]),
        ["u", "w"],
    ),
    "one side tied": (
        {"w": matrix(WIDTH, 3)},
        lambda w, x: tf.tanh(x @ w["w"]) @ tf.transpose(w["w"]),
        ["w"],
    ),
    "condition": (
        {"u": matrix(WIDTH, WIDTH), "w": matrix(WIDTH, 3)},
        lambda w, x: tf.cond(tf.reduce_sum(x) > 1e9, lambda: x, lambda: x @ w["u"]) @ w["w"],
        ["u"],
    ),
    "loop": (
        {"u": matrix(WIDTH, WIDTH), "w": matrix(WIDTH, 3)},
        lambda w, x: (
            tf.while_loop(lambda i, y: i < 2, lambda i, y: (i + 1, tf.tanh(y @ w["u"])), (0, x))[1] @ w["w"]
        ),
        ["u"],
    ),
    "look-up": (
        {"w": matrix(5, 2, 3)},
        lambda w, x: tf.gather(w["w"], tf.cast(tf.abs(x[..., 0]) * 2, tf.int64) % 5),
        [],
    ),
    "numpy": ({"w": matrix(WIDTH, 3)}, lambda w, x: tf.experimental.numpy.matmul(x, w["w"]), []),
    "a function": ({"w": matrix(WIDTH, 3)}, tf.function(lambda w, x: x @ w["w"]), []),
    "a compiled one": (
        {"w": matrix(WIDTH, 3)},
        tf.function(lambda w, x: tf.tanh(x) @ w["w"], jit_compile=True),
        ["w"],
    ),
    "nested": (
        [{"w": matrix(WIDTH, 3)}, (matrix(WIDTH, 2),)],
        lambda w, x: {"z": x @ w[0]["w"], "a": [x[:, 0] @ w[1][0], tf.reduce_sum(x, (1, 2))]},
        [],
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_functions_of_variables(name, x):
    params, predict, left_out = PLAIN[name]
    check(predict, params, x, left_out)


def test_weights_in_two_orders_are_left_out():
    table = {"e": matrix(5, 3), "w": matrix(3, 3)}

    def predict(w, indices):
        return tf.tanh(tf.gather(w["e"], indices) @ w["w"]) @ tf.transpose(w["e"])

    check(predict, table, np.random.default_rng(0).integers(0, 5, (B, 2)), ["e"])


def test_recurrent_layers_are_left_out(x):
    model = sequence(L.LSTM(3, name="inner"), L.Dense(2))
    left_out = [variable.path for variable in model.trainable_variables[:3]]
    check(call, model, (x,), left_out)


def test_layers_of_other_axes_than_the_examples_are_left_out(x):
    w = {"w": matrix(WIDTH, 3), "u": matrix(B, 2), "p": matrix(LENGTH, WIDTH)}

    def predict(w, x):
        by_time = tf.tanh(tf.tensordot(tf.transpose(x, (1, 0, 2)), w["w"], 1))
        mixed = tf.matmul(tf.transpose(x[:, 0]), w["u"])
        positions = tf.gather(w["p"], tf.range(LENGTH))
        return tf.reduce_sum(by_time, 0) + tf.reduce_sum(mixed) + tf.reduce_sum(positions)

    assert TensorFlowBackend(w).open(predict, w, x).layers == []


@pytest.mark.parametrize("part", [0, slice(None), -1])
def test_rows_of_other_orders_are_left_out(x, part):
    w = {"w": matrix(WIDTH, 3), "u": matrix(WIDTH, 3)}

    def predict(w, x):
        by_example = tf.tanh(tf.reshape(x, (-1, WIDTH))) @ w["w"]
        by_time = tf.tanh(tf.reshape(tf.transpose(x, (1, 0, 2)), (-1, WIDTH))) @ w["u"]
        times = tf.reshape(by_time, (LENGTH, -1, 3))[part]
        return tf.reshape(by_example, (-1, LENGTH, 3)), times if part != slice(None) else tf.reduce_sum(
            times, 0
        )

    check(predict, w, x, ["u"])


def test_as_many_steps_as_examples(x):
    w = {"u": matrix(WIDTH, 3), "v": matrix(3, 2)}

    def predict(w, x):
        steps = tf.tanh(tf.tensordot(tf.transpose(x[:, :B], (1, 0, 2)), w["u"], 1))
        return tf.tensordot(tf.transpose(steps, (1, 0, 2)), w["v"], 1)

    check(predict, w, x, ["u"])


def test_derivatives_by_the_outputs(x):
    model = sequence(L.Flatten(), L.Dense(3))
    other = sequence(L.Flatten(), L.Dense(2))

    def predict(model, batch):
        return {"b": model(batch[0]), "a": [other(batch[0])]}

    def loss(outputs, batch):
        return tf.reduce_mean(tf.exp(outputs["b"])) + tf.reduce_sum(outputs["a"][0][:, 0] ** 2 * batch[1])

    y = np.random.default_rng(1).standard_normal(B)
    opened = TensorFlowBackend(model).open(predict, model, (x, y))
    assert opened.shapes == [(B, 2), (B, 3)]
    assert [layer.name for layer in opened.layers] == [model.layers[1].path]
    a, b = other(x).numpy(), model(x).numpy()
    slope = np.concatenate([(np.array([2, 0]) * a * y[:, None]).ravel(), np.exp(b).ravel() / b.size])
    curvature = np.concatenate([(np.array([2, 0]) * y[:, None]).ravel(), np.exp(b).ravel() / b.size])
    np.testing.assert_allclose(opened.output_gradient(loss), slope, rtol=1e-12)
    v = np.random.default_rng(2).standard_normal((slope.size, 3))
    np.testing.assert_allclose(opened.output_hvp(loss, v), curvature[:, None] * v, rtol=1e-12)
    opened.output_hvp(loss, v)[:] = 0  # the caller's own


def test_outputs_that_the_loss_ignores_have_zeros(x):
    w = {"w": matrix(WIDTH, 3)}
    opened = TensorFlowBackend(w).open(lambda w, x: (x @ w["w"], x[:, 0] @ w["w"]), w, x)
    slope = opened.output_gradient(lambda outputs, x: tf.reduce_sum(outputs[1]))
    np.testing.assert_array_equal(slope, [0] * (B * LENGTH * 3) + [1] * (B * 3))


def test_cotangent_loss(x):
    backend, model = TensorFlowBackend(), sequence(L.Dense(3), L.LayerNormalization())
    opened = backend.open(call, model, (x,))
    (shape,) = opened.shapes
    cotangents = np.random.default_rng(1).standard_normal(shape)
    wanted = gradients(
        call, model, [v.value for v in model.trainable_variables], (x,), cotangents.reshape(1, -1)
    )
    loss = backend.cotangent_loss(call)
    np.testing.assert_allclose(backend.grad(loss, model, ((x,), [cotangents])), wanted[:, 0], rtol=1e-11)
    assert {loss, backend.cotangent_loss(call)} == {loss}
    assert loss != backend.cotangent_loss(lambda model, batch: model(batch[0]))
    assert loss != call


def test_values_in_the_place_of_variables(x):
    backend, w = TensorFlowBackend(), {"w": matrix(WIDTH, 3), "u": matrix(3, 2)}

    def predict(w, x):
        return tf.tanh(x @ w["w"]) @ w["u"]

    before = backend.flatten(w)
    values = np.random.default_rng(5).standard_normal(before.size)
    opened = backend.open(predict, backend.unflatten(values, w), x)
    u, v = values[:6].reshape(3, 2), values[6:].reshape(WIDTH, 3)
    np.testing.assert_allclose(opened.outputs(), (np.tanh(x @ v) @ u).ravel(), rtol=1e-12)
    ones = np.ones((1, opened.outputs().size))
    np.testing.assert_allclose(
        opened.pull_back(ones)[1].reshape(B, LENGTH, 3), (1 - np.tanh(x @ v) ** 2) * u.sum(1), rtol=1e-12
    )
    np.testing.assert_array_equal(backend.flatten(w), before)


def test_batches_of_one_form_share_a_trace(x):
    traces = []

    def predict(w, x):
        traces.append(x.shape)
        return x @ w["w"]

    backend, w = TensorFlowBackend(), {"w": matrix(WIDTH, 3)}
    for size in (4, 3, 2, 4, 1):
        opened = backend.open(predict, w, x[:size])
        ones = np.ones((size, opened.outputs().size))
        (g,) = opened.pull_back(ones)
        assert g.shape == (size, size, LENGTH, 1, 3)
        opened.output_gradient(total)
        assert len(traces) <= 4
    np.testing.assert_array_equal(g, 1)


def total(outputs, batch):
    return tf.reduce_sum(outputs)


def test_a_model_without_layers(x):
    w = {"w": tf.Variable(2.0, dtype=tf.float64)}
    opened = TensorFlowBackend(w).open(lambda w, x: x[:, 0] * w["w"], w, x)
    assert opened.layers == opened.inputs == opened.pull_back(np.ones((2, B * WIDTH))) == []


def test_malformed_arguments(x):
    w = {"w": matrix(WIDTH, 3)}
    opened = TensorFlowBackend(w).open(lambda w, x: x @ w["w"], w, x)
    for malformed in (np.ones(B * LENGTH * 3), np.ones((2, 5))):
        with pytest.raises(VectorError):
            opened.pull_back(malformed)
    with pytest.raises(VectorError):
        opened.output_hvp(total, np.ones((5, 2)))


def test_blocks_are_named_as_the_framework_does():
    backend = TensorFlowBackend()
    model = sequence(L.Dense(3, name="first"), L.Dense(2, name="second"))
    blocks = backend.blocks(model)
    assert list(blocks) == [variable.path for variable in model.trainable_variables]
    assert blocks[f"{model.name}/first/bias"] == slice(18, 21)
    assert list(backend.blocks(model.trainable_variables)) == list(blocks)
    structure = {"b": [matrix(2), (matrix(3),)], "a": matrix(1)}
    assert backend.blocks(structure) == {"a": slice(0, 1), "b/0": slice(1, 3), "b/1/0": slice(3, 6)}
    assert backend.blocks(backend.unflatten(np.zeros(6), structure)).keys() == {"a", "b/0", "b/1/0"}
    module = tf.Module()
    module.u, module.v, module.w = tf.Variable([1.0]), tf.Variable([1.0]), tf.Variable([1.0], name="weight")
    assert list(backend.blocks(module)) == ["Variable#0", "Variable#1", "weight"]
