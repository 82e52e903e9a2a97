"""TensorFlow without its start-up notices, and one neuron whose derivatives have a closed form."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import gc
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ihvp_tf._backend import TensorFlowBackend

# Half a million objects that stay: a full collection takes 0.6 s with them.
gc.freeze()


@dataclass(frozen=True)
class Neuron:
    """``1/2 mean (tanh(x·w) − y)²`` over random data, in numpy."""

    x: np.ndarray
    y: np.ndarray
    w: np.ndarray

    @property
    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        return self.x, self.y

    @property
    def per_example(self) -> np.ndarray:
        t = np.tanh(self.x @ self.w)
        return ((t - self.y) * (1 - t**2))[:, None] * self.x

    @property
    def hessian(self) -> np.ndarray:
        t = np.tanh(self.x @ self.w)
        slope = 1 - t**2
        return (self.x.T * (slope**2 - 2 * (t - self.y) * t * slope)) @ self.x / len(self.x)

    @property
    def gauss_newton(self) -> np.ndarray:
        slope = 1 - np.tanh(self.x @ self.w) ** 2
        return (self.x.T * slope**2) @ self.x / len(self.x)

    @property
    def variables(self) -> list[Any]:
        return [tf.Variable(self.w[:2]), tf.Variable(self.w[2:])]

    @property
    def model(self) -> keras.Model:
        layer = keras.layers.Dense(1, activation="tanh", use_bias=False, dtype="float64")
        model = keras.Sequential([keras.Input((self.w.size,), dtype="float64"), layer])
        layer.kernel.assign(self.w[:, None])
        return model


def neuron_predict(variables: list[Any], batch: tuple[Any, Any]) -> Any:
    return tf.tanh(tf.linalg.matvec(batch[0], tf.concat(variables, 0)))


def squared_error(outputs: Any, batch: tuple[Any, Any]) -> Any:
    return tf.reduce_mean((outputs - batch[1]) ** 2) / 2


def neuron_loss(variables: list[Any], batch: tuple[Any, Any]) -> Any:
    return squared_error(neuron_predict(variables, batch), batch)


def model_loss(model: keras.Model, batch: tuple[Any, Any]) -> Any:
    return squared_error(model(batch[0])[:, 0], batch)


@pytest.fixture
def neuron() -> Neuron:
    rng = np.random.default_rng(0)
    return Neuron(rng.standard_normal((7, 5)), rng.standard_normal(7), rng.standard_normal(5))


@pytest.fixture
def backend() -> TensorFlowBackend:
    return TensorFlowBackend()


@pytest.fixture(scope="session")
def losses() -> Any:
    """The losses of the neuron: a conftest cannot be imported."""

    class Losses:
        of_variables = staticmethod(neuron_loss)
        of_model = staticmethod(model_loss)
        predict = staticmethod(neuron_predict)
        of_outputs = staticmethod(squared_error)

    return Losses
