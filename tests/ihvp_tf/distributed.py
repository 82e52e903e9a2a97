"""Models of ``tf.distribute`` strategies beside the plain one, on two virtual devices.

Run as ``python distributed.py``: the devices of a process cannot be changed once TensorFlow has started.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import ihvp
from ihvp.errors import DataError, ParameterError, TracedValue

X = np.random.default_rng(0).standard_normal((12, 3))
Y = np.random.default_rng(1).standard_normal((12, 1))
V = np.random.default_rng(2).standard_normal((15, 2))
TEST = X[:2] + 0.1, Y[:2]


def made():
    keras.utils.set_random_seed(0)
    dense = [keras.layers.Dense(width, "tanh", dtype="float64") for width in (2, 1)]
    statistics = keras.layers.BatchNormalization(dtype="float64")
    return keras.Sequential([keras.Input((3,), dtype="float64"), dense[0], statistics, dense[1]])


def predict(model, batch):
    return model(batch[0])


def predict_in_training(model, batch):
    return model(batch[0], training=True)


def misfit(outputs, batch):
    return tf.reduce_mean((outputs - batch[1]) ** 2)


def answers(model):
    o = ihvp.Objective(misfit, model, (X, Y), predict=predict)
    G = ihvp.GaussNewton(o)
    yield "value", o.value()
    yield "gradient", o.gradient()
    yield "product", ihvp.Hessian(o) @ V
    yield (
        "finite difference",
        ihvp.Hessian(ihvp.Objective(misfit, model, (X, Y), predict=predict, backend="numdiff")) @ V[:, 0],
    )
    yield "solve", ihvp.solve(G, V, damping=0.1, solver=ihvp.CG(rtol=1e-10)).x
    yield "scores", np.asarray(ihvp.Influence(o, 0.1, ihvp.Direct(), curvature=G).scores(TEST))
    elsewhere = o.backend.unflatten(o.backend.flatten(model) + 0.1, model)
    yield "gradient elsewhere", o.at(elsewhere).gradient()
    training = ihvp.Objective(misfit, model, (X, Y), predict=predict_in_training, checks=False)
    yield "gradient in training", training.gradient()


def state(model):
    """The variables of every replica, and their bits."""
    parts = [part for variable in model.variables for part in getattr(variable.value, "values", ())]
    return [*map(id, model.variables), *map(id, parts)], [part.numpy().tobytes() for part in parts]


def mirrored_model_is_the_plain_one(strategy):
    plain = made()
    with strategy.scope():
        model = made()
    for variable, value in zip(model.variables, plain.variables, strict=True):
        variable.assign(value)
    assert len(state(model)[1]) == 2 * len(model.variables)
    before, expected = state(model), dict(answers(plain))
    for what, found in answers(model):
        np.testing.assert_allclose(found, expected[what], rtol=1e-10, atol=1e-12, err_msg=what)
    assert state(model) == before
    return model


def curve(w, batch):
    return tf.reduce_mean((tf.tanh(tf.linalg.matvec(batch[0], w[0])) * w[1] - batch[1][:, 0]) ** 2)


def product(variables):
    return ihvp.Hessian(ihvp.Objective(curve, variables, (X, Y), checks=False)) @ V[:4]


def other_strategies_have_the_same_answers():
    start = np.array([0.5, -1.0, 2.0]), np.array(2.0)
    expected = product([*map(tf.Variable, start)])
    for strategy in (
        tf.distribute.OneDeviceStrategy("CPU:1"),
        tf.distribute.experimental.CentralStorageStrategy(["CPU:0", "CPU:1"], "CPU:0"),
        tf.distribute.MultiWorkerMirroredStrategy(),
    ):
        with strategy.scope():
            variables = [*map(tf.Variable, start)]
        np.testing.assert_allclose(product(variables), expected, rtol=1e-10)


def calls_inside_are_refused(strategy, model):
    o = ihvp.Objective(misfit, model, (X, Y), predict=predict)
    for call in (
        lambda: ihvp.Objective(misfit, model, (X, Y), predict=predict),
        o.value,
        o.gradient,
        lambda: ihvp.Hessian(o) @ V,
    ):
        with pytest.raises(ParameterError, match="outside of both"):
            strategy.run(call)
        with strategy.scope(), pytest.raises(ParameterError, match="outside of both"):
            call()

    @tf.function
    def compiled():
        return strategy.run(o.gradient)

    with pytest.raises(TracedValue, match="Call ihvp outside"):
        compiled()


def distributed_data_is_refused_and_has_ways_around(strategy, model):
    rows = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    spread = strategy.experimental_distribute_dataset(rows)
    for data in (spread, list(spread), next(iter(spread))):
        o = ihvp.Objective(misfit, model, data, predict=predict)
        with pytest.raises(DataError, match=r"tensorflow\.PerReplica"):
            o.gradient()
    gathered = [tuple(strategy.gather(part, axis=0) for part in batch) for batch in spread]
    expected = ihvp.Objective(misfit, model, (X, Y), predict=predict, checks=False).value()
    for data in (rows, gathered):
        found = ihvp.Objective(misfit, model, data, predict=predict, checks=False).value()
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def main():
    warnings.simplefilter("ignore", ihvp.influence.NotAtOptimum)
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    model = mirrored_model_is_the_plain_one(strategy)
    calls_inside_are_refused(strategy, model)
    distributed_data_is_refused_and_has_ways_around(strategy, model)
    other_strategies_have_the_same_answers()


if __name__ == "__main__":
    main()
