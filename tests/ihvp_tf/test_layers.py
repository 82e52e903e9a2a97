"""Models opened at their layers: ``Σ g aᵀ`` is the gradient, for all and for single examples."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from ihvp.backend import SupportsBlocks, SupportsLayers
from ihvp.errors import DataError, WrongShape
from ihvp_tf import _open
from ihvp_tf._backend import TensorFlowBackend

B, LENGTH, WIDTH = 4, 8, 6
EPSILON = 1e-12


@pytest.fixture(autouse=True)
def float64():
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_floatx(before)


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((B, LENGTH, WIDTH))


def sequence(*layers, shape=(LENGTH, WIDTH), dtype=None):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *layers])


def call(model, batch):
    return model(batch[0])


def gradients(predict, params, variables, batch, cotangents):
    """By a tape over the plain model, ``(P, V)``; for each row of the cotangents."""
    columns = []
    for row in cotangents:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            outputs = tf.nest.flatten(predict(params, batch))
            flat = tf.concat([tf.reshape(output, [-1]) for output in outputs], 0)
            value = tf.reduce_sum(flat * tf.constant(row, flat.dtype))
        parts = tape.gradient(value, variables, unconnected_gradients="zero")
        columns.append(np.concatenate([tf.convert_to_tensor(part).numpy().reshape(-1) for part in parts]))
    return np.stack(columns, 1)


def outer(layer, inputs, pulled):
    """``Σ_s g aᵀ`` of each example, ``(B, V, groups, d_out, d_in)``, 1 for the bias among the inputs."""
    if layer.one_hot:
        inputs = np.eye(layer.d_in)[inputs][:, :, None]
    if layer.bias is not None:
        inputs = np.concatenate([inputs, np.ones_like(inputs[..., :1])], -1)
    return np.einsum("vnsgo,nsgi->nvgoi", pulled, inputs)


def check(predict, params, batch, left_out=(), rtol=EPSILON, by_example=True):
    """Compares with the tape; gives the open model and the names of the layers."""
    backend = TensorFlowBackend(params)
    variables = [getattr(leaf, "value", leaf) for leaf in getattr(params, "trainable_variables", [])]
    variables = variables or tf.nest.flatten(params)
    opened = backend.open(predict, params, batch)
    size = sum(int(np.prod(shape)) for shape in opened.shapes)
    count = len(tf.nest.flatten(batch)[0])
    cotangents = np.random.default_rng(1).standard_normal((2, size))
    np.testing.assert_allclose(
        opened.outputs(), np.concatenate([np.ravel(y) for y in tf.nest.flatten(predict(params, batch))]), rtol
    )
    batch = tf.nest.map_structure(tf.constant, batch)
    wanted = gradients(predict, params, variables, batch, cotangents)
    pulled = opened.pull_back(cotangents)
    scale = np.abs(wanted).max()
    seen = np.zeros(len(wanted), int)
    for layer, inputs, slopes in zip(opened.layers, opened.inputs, pulled, strict=True):
        own = () if layer.one_hot else (layer.groups, layer.d_in)
        assert inputs.shape == (count, inputs.shape[1], *own)
        assert slopes.shape == (2, count, inputs.shape[1], layer.groups, layer.d_out)
        by = outer(layer, inputs, slopes)
        np.testing.assert_allclose(by.sum(0), layer.read(wanted), atol=rtol * scale, rtol=0)
        for part in layer.slices:
            seen[part] += 1
    blocks = backend.blocks(params)
    assert [name for name, part in blocks.items() if not seen[part].all()] == list(left_out)
    assert seen.max(initial=0) <= 1
    # The outputs of one example lead only to the gradient of that example.
    for i in range(count if by_example else 0):
        rows = [np.arange(np.prod(shape)).reshape(shape)[i].ravel() for shape in opened.shapes]
        starts = np.cumsum([0] + [int(np.prod(shape)) for shape in opened.shapes])
        own = np.zeros_like(cotangents)
        for start, row in zip(starts, rows, strict=False):
            own[:, start + row] = cotangents[:, start + row]
        wanted = gradients(predict, params, variables, batch, own)
        for layer, inputs, slopes in zip(opened.layers, opened.inputs, pulled, strict=True):
            found = outer(layer, inputs, slopes)[i]
            np.testing.assert_allclose(found, layer.read(wanted), atol=rtol * scale, rtol=0)
    return opened, [layer.name for layer in opened.layers]


L = keras.layers
STRIDED = {"strides": 2}
DILATED = {"dilation_rate": 2}
MODELS = {
    "mlp": lambda: sequence(L.Flatten(), L.Dense(4, activation="tanh"), L.Dense(3, use_bias=False)),
    "positions": lambda: sequence(L.Dense(4, activation="gelu"), L.Dense(3)),
    "each step": lambda: sequence(L.TimeDistributed(L.Dense(3, activation="tanh")), L.Dense(2)),
    "contraction": lambda: sequence(
        L.EinsumDense("abc,cd->abd", output_shape=(LENGTH, 5), bias_axes="d"),
        L.EinsumDense("abc,bcd->abd", output_shape=(LENGTH, 4), bias_axes="bd", activation="tanh"),
        L.EinsumDense("abc,cbd->adb", output_shape=(3, LENGTH), activation="tanh"),
        L.EinsumDense("abc,bcde->aed", output_shape=(2, 5), bias_axes="ed"),
    ),
    "embedding": lambda: sequence(L.Embedding(5, 3), L.Dense(2), shape=(LENGTH,), dtype="int32"),
    "conv1d in groups": lambda: sequence(L.Conv1D(6, 3, groups=2), L.Dense(2)),
    "conv1d in groups, dilated": lambda: sequence(
        L.Conv1D(6, 3, groups=2, dilation_rate=2, padding="same"), L.Dense(2)
    ),
    "conv1d causal": lambda: sequence(L.Conv1D(4, 3, padding="causal", dilation_rate=2), L.Dense(2)),
    "conv2d in groups": lambda: sequence(
        L.Reshape((4, 3, 4)), L.Conv2D(6, (3, 2), groups=2, padding="same", strides=2), L.Dense(2)
    ),
    "separable": lambda: sequence(L.SeparableConv1D(4, 3, padding="same"), L.Dense(2)),
    "separable, dilated": lambda: sequence(
        L.Reshape((LENGTH, 3, 2)), L.SeparableConv2D(4, 2, dilation_rate=2), L.Dense(2)
    ),
}
for name, options in {
    "": {},
    ", strided": STRIDED,
    ", same": {"padding": "same"},
    ", same, strided": {"padding": "same", **STRIDED},
    ", dilated": DILATED,
    ", same, dilated": {"padding": "same", **DILATED},
}.items():
    MODELS |= {
        f"conv1d{name}": lambda o=options: sequence(L.Conv1D(4, 3, activation="tanh", **o), L.Dense(2)),
        f"conv2d{name}": lambda o=options: sequence(
            L.Reshape((LENGTH, WIDTH, 1)), L.Conv2D(3, (3, 2), activation="tanh", **o), L.Dense(2)
        ),
        f"conv3d{name}": lambda o=options: sequence(
            L.Reshape((4, 4, 3, 1)),
            L.Conv3D(3, 2, activation="tanh", **{k: (1, 2, 1) if k == "dilation_rate" else v for k, v in o.items()}),
            L.Dense(2),
        ),
        f"depthwise{name}": lambda o=options: sequence(
            L.Reshape((LENGTH, 3, 2)), L.DepthwiseConv2D(2, depth_multiplier=2, **o), L.Dense(2)
        ),
    }


@pytest.mark.parametrize("name", MODELS)
def test_products_of_both_sides_are_the_gradient(name, x):
    batch = (np.random.default_rng(0).integers(0, 5, (B, LENGTH)) if name == "embedding" else x,)
    check(call, MODELS[name](), batch)


def test_attention(x):
    given = keras.Input((LENGTH, WIDTH))
    model = keras.Model(given, L.MultiHeadAttention(2, 3, value_dim=4)(given, given))
    _, names = check(call, model, (x,))
    assert [name.rpartition("/")[2] for name in names] == ["query", "key", "value", "attention_output"]


def test_single_precision(x):
    keras.config.set_floatx("float32")
    model = sequence(L.Conv1D(4, 3, activation="tanh"), L.Dense(2))
    opened, _ = check(call, model, (x.astype(np.float32),), rtol=1e-5)
    assert opened.outputs().dtype == opened.inputs[0].dtype == np.float32


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
    "transposed input": ({"w": matrix(WIDTH, 3)}, lambda w, x: tf.matmul(tf.transpose(x[:, 0]), w["w"], True), []),
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
    "one side tied": ({"w": matrix(WIDTH, 3)}, lambda w, x: tf.tanh(x @ w["w"]) @ tf.transpose(w["w"]), ["w"]),
    "condition": (
        {"u": matrix(WIDTH, WIDTH), "w": matrix(WIDTH, 3)},
        lambda w, x: tf.cond(tf.reduce_sum(x) > 1e9, lambda: x, lambda: x @ w["u"]) @ w["w"],
        ["u"],
    ),
    "loop": (
        {"u": matrix(WIDTH, WIDTH), "w": matrix(WIDTH, 3)},
        lambda w, x: tf.while_loop(lambda i, y: i < 2, lambda i, y: (i + 1, tf.tanh(y @ w["u"])), (0, x))[1]
        @ w["w"],
        ["u"],
    ),
    "numpy": ({"w": matrix(WIDTH, 3)}, lambda w, x: tf.experimental.numpy.matmul(x, w["w"]), []),
    "a function": ({"w": matrix(WIDTH, 3)}, tf.function(lambda w, x: x @ w["w"]), []),
    "a compiled one": ({"w": matrix(WIDTH, 3)}, tf.function(lambda w, x: tf.tanh(x) @ w["w"], jit_compile=True), ["w"]),
    "nested": (
        [{"w": matrix(WIDTH, 3)}, (matrix(WIDTH, 2),)],
        lambda w, x: {"z": x @ w[0]["w"], "a": [x[:, 0] @ w[1][0], tf.reduce_sum(x, (1, 2))]},
        [],
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_functions_of_variables(name, x):
    params, predict, left_out = PLAIN[name]
    check(predict, params, x, left_out, by_example=name != "transposed input")


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
