"""Linearised products follow parameters that are replaced, in all threads; operators can be pickled."""

from __future__ import annotations

import pickle
import threading

import jax
import jax.numpy as jnp
import numpy as np

import ihvp
from ihvp_jax._backend import JaxBackend


def loss(w, batch):
    return jnp.mean(jnp.tanh(batch @ w["w"]) ** 2)


X = np.sin(np.linspace(-1, 1, 24).reshape(6, 4) * 5)


def test_a_parameter_that_moves_moves_the_products_of_all_threads():
    w = {"w": jnp.arange(4.0)}
    matvec, v = JaxBackend(w).linearize(loss, w, X), jnp.ones(4)
    for step in range(10):
        w["w"] = jnp.arange(4.0) + step
        expected = JaxBackend(w).hvp(loss, w, X, v)
        start, got = threading.Barrier(4), []

        def work(start=start, got=got):
            start.wait()
            with jax.enable_x64(True):  # each thread has its own
                got.append(matvec(v))

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert all(np.allclose(x, expected, rtol=1e-5) for x in got)


def test_operators_pass_between_processes_after_products():
    H, v = ihvp.Hessian(ihvp.Objective(loss, {"w": jnp.arange(4.0)}, X)), jnp.ones(4)
    product = H @ v
    np.testing.assert_allclose(pickle.loads(pickle.dumps(H)) @ v, product, rtol=1e-6)
