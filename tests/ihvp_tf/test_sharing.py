"""Which graphs backends share, and how long those live."""

from __future__ import annotations

import gc
import sys
import types
import weakref
from collections import OrderedDict

import keras
import numpy as np
import pytest
import tensorflow as tf

from ihvp_tf import _sharing
from ihvp_tf._backend import TensorFlowBackend
from ihvp_tf._graph import Graph


@pytest.fixture
def traces(monkeypatch):
    """One entry for each graph that is traced."""
    found, checked = [], Graph._checked
    monkeypatch.setattr(Graph, "_checked", lambda self, graph: found.append(graph) or checked(self, graph))
    return found


def gradient(loss, params):
    """By a backend of its own."""
    return TensorFlowBackend().grad(loss, params, None)


def variables():
    return [tf.Variable([1.0, 2.0])]


def make_loss(factor=1.0):
    def loss(params, batch):
        return factor * tf.reduce_sum(params[0] ** 2)

    return loss


def test_backends_share_the_trace_of_a_plain_loss(traces):
    loss, params = make_loss(), variables()
    for _ in range(3):
        np.testing.assert_array_equal(gradient(loss, params), [2, 4])
    assert len(traces) == 1


def test_another_list_of_the_same_variables_shares_the_trace(traces):
    loss, (w,) = make_loss(), variables()
    gradient(loss, [w])
    gradient(loss, [w])
    assert len(traces) == 1


def test_losses_over_tensors_variables_and_other_functions_are_shared(traces):
    inner, weight, offset = make_loss(), tf.Variable(2.0), tf.constant(1.0)

    def loss(params, batch, power=(1, 2)):
        return weight * inner(params, batch) + offset * tf.cast(power[1], tf.float32)

    params = variables()
    np.testing.assert_array_equal(gradient(loss, params), [4, 8])
    weight.assign(3.0)
    np.testing.assert_array_equal(gradient(loss, params), [6, 12])
    assert len(traces) == 1


def test_other_variables_containers_and_losses_are_traced_by_themselves(traces):
    loss, (w,) = make_loss(), variables()
    gradient(loss, [w])
    gradient(loss, (w,))
    gradient(loss, {0: w})
    gradient(loss, variables())
    gradient(make_loss(), [w])
    assert len(traces) == 5


def test_order_of_a_dict_counts():
    def loss(params, batch):
        return tf.add_n([(i + 1.0) * w for i, w in enumerate(params.values())])

    a, b = tf.Variable(1.0), tf.Variable(1.0)
    np.testing.assert_array_equal(gradient(loss, {"a": a, "b": b}), [1, 2])
    np.testing.assert_array_equal(gradient(loss, {"b": b, "a": a}), [2, 1])


def closure():
    factor = 2.0

    def loss(params, batch):
        return factor * tf.reduce_sum(params[0])

    def change():
        nonlocal factor
        factor = 3.0

    return loss, change


def from_module(text):
    module = types.ModuleType("losses_of_a_notebook")
    exec("import tensorflow as tf\nfactor = 2.0\n" + text, vars(module))
    return module.loss, lambda: setattr(module, "factor", 3.0)


def global_name():
    return from_module("def loss(params, batch): return factor * tf.reduce_sum(params[0])")


def global_name_in_a_generator():
    return from_module("def loss(params, batch): return sum(factor * tf.reduce_sum(p) for p in params)")


def function_that_is_called():
    inner, change = closure()
    return (lambda params, batch: inner(params, batch)), change


def defaults():
    def loss(params, batch, factor=2.0):
        return factor * tf.reduce_sum(params[0])

    return loss, lambda: setattr(loss, "__defaults__", (3.0,))


def code():
    def loss(params, batch):
        return 2.0 * tf.reduce_sum(params[0])

    def other(params, batch):
        return 3.0 * tf.reduce_sum(params[0])

    return loss, lambda: setattr(loss, "__code__", other.__code__)


def attribute_of_the_function():
    def loss(params, batch):
        return loss.factor * tf.reduce_sum(params[0])

    loss.factor = 2.0
    return loss, lambda: setattr(loss, "factor", 3.0)


def settings_in_a_dict():
    settings = {"factor": 2.0}
    return (lambda params, batch: settings["factor"] * tf.reduce_sum(params[0])), lambda: settings.update(
        factor=3.0
    )


def settings_in_an_array():
    factors = np.array([2.0], np.float32)
    return (lambda params, batch: tf.reduce_sum(factors * params[0])), lambda: factors.fill(3.0)


def settings_in_an_object():
    settings = types.SimpleNamespace(factor=2.0)
    return (lambda params, batch: settings.factor * tf.reduce_sum(params[0])), lambda: setattr(
        settings, "factor", 3.0
    )


def method():
    class Model:
        factor = 2.0

        def loss(self, params, batch):
            return self.factor * tf.reduce_sum(params[0])

    model = Model()
    return model.loss, lambda: setattr(model, "factor", 3.0)


CHANGES = [
    closure,
    global_name,
    global_name_in_a_generator,
    function_that_is_called,
    defaults,
    code,
    attribute_of_the_function,
    settings_in_a_dict,
    settings_in_an_array,
    settings_in_an_object,
    method,
]


@pytest.mark.parametrize("make", CHANGES, ids=lambda make: make.__name__)
def test_a_backend_sees_what_has_changed_in_a_loss(make):
    (loss, change), params = make(), variables()
    np.testing.assert_array_equal(gradient(loss, params), [2, 2])
    change()
    np.testing.assert_array_equal(gradient(loss, params), [3, 3])


def test_a_backend_sees_what_has_changed_in_a_module_that_a_loss_imports(monkeypatch):
    module = types.ModuleType("settings_of_a_test")
    module.factor = 2.0
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def loss(params, batch):
        import settings_of_a_test

        return settings_of_a_test.factor * tf.reduce_sum(params[0])

    params = variables()
    np.testing.assert_array_equal(gradient(loss, params), [2, 2])
    module.factor = 3.0
    np.testing.assert_array_equal(gradient(loss, params), [3, 3])


def test_a_backend_sees_what_has_changed_in_a_model():
    layer = keras.layers.Dense(1, use_bias=False)
    layer(np.ones((1, 2), np.float32))

    def loss(model, batch):
        return model.factor * tf.reduce_sum(model.kernel)

    layer.factor = 2.0
    np.testing.assert_array_equal(gradient(loss, layer), [2, 2])
    layer.factor = 3.0
    np.testing.assert_array_equal(gradient(loss, layer), [3, 3])


def test_a_shared_graph_keeps_neither_loss_nor_variables():
    loss, params = make_loss(), variables()
    gradient(loss, params)
    entries, gone = len(_sharing._entries), [weakref.ref(loss), weakref.ref(params[0])]
    del loss, params
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
    assert len(_sharing._entries) == entries - 1


@pytest.mark.parametrize("dropped", ["loss", "variables"])
def test_a_shared_graph_goes_with_either(dropped):
    kept = {"loss": make_loss(), "variables": variables()}
    gradient(kept["loss"], kept["variables"])
    graph = weakref.ref(next(reversed(_sharing._entries.values())).graph)
    assert graph() is not None
    del kept[dropped]
    gc.collect()
    assert graph() is None


def test_number_of_shared_graphs_is_bounded(monkeypatch, traces):
    monkeypatch.setattr(_sharing, "_MOST_SHARED", 2)
    # Losses of other test modules may be alive.
    monkeypatch.setattr(_sharing, "_entries", OrderedDict())
    params, losses = variables(), [make_loss(float(i)) for i in range(3)]
    for loss in (*losses, losses[0]):
        gradient(loss, params)
    assert len(traces) == 4
