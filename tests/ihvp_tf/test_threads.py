"""Threads at once on one model: the answers of one thread, and at no moment other values in its variables."""

from __future__ import annotations

import pickle
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import ihvp

X = np.sin(np.linspace(-1, 1, 24).reshape(6, 4) * 5)


def loss(model, batch):
    return tf.reduce_mean(model(batch, training=True) ** 2)


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((4,), dtype="float64"),
        keras.layers.BatchNormalization(dtype="float64"),
        keras.layers.Dense(2, activation="tanh", dtype="float64"),
    ]
    return keras.Sequential(layers)


def test_answers_are_those_of_one_thread_and_the_variables_stay(model):
    objective = ihvp.Objective(loss, model, X, checks=False)
    H, v = ihvp.Hessian(objective), np.linspace(-1, 1, objective.num_params)
    D = ihvp.Hessian(ihvp.Objective(loss, model, X, backend="numdiff", checks=False))
    jobs = [lambda: H @ v, objective.gradient, lambda: D @ v, objective.value]
    expected = [job() for job in jobs]
    bits = [variable.numpy().tobytes() for variable in model.variables]
    wrong, changed, done = [], [], threading.Event()

    def work(first):
        for i in range(first, first + 40):
            try:
                got = jobs[i % 4]()
                if not np.allclose(got, expected[i % 4], rtol=1e-5, atol=1e-7):
                    wrong.append((i % 4, got))
            except Exception as error:
                wrong.append((i % 4, error))

    def watch():
        while not done.is_set():
            changed.extend(
                variable.path
                for variable, before in zip(model.variables, bits, strict=True)
                if variable.numpy().tobytes() != before
            )

    watcher = threading.Thread(target=watch)
    watcher.start()
    workers = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    done.set()
    watcher.join()
    assert not wrong
    assert not changed


def sum_of_squares(w, batch):
    return tf.reduce_mean(tf.tanh(tf.linalg.matvec(batch, w[0])) ** 2)


def test_operators_pass_between_processes_after_products():
    objective = ihvp.Objective(sum_of_squares, [tf.Variable(np.arange(4.0))], X)
    H, v = ihvp.Hessian(objective), np.ones(4)
    product = H @ v
    np.testing.assert_allclose(pickle.loads(pickle.dumps(H)) @ v, product)
