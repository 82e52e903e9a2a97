"""Differences over JAX's gradient."""

from __future__ import annotations

import numpy as np
import pytest

from ihvp.backend import GradientFunction
from ihvp_numdiff._backend import NumdiffBackend

jax = pytest.importorskip("jax")


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def backend():
    from ihvp_jax._backend import JaxBackend

    return NumdiffBackend(JaxBackend())


def loss(params, batch):
    # "w" comes before "b" here, and after it in JAX's order of a pytree.
    return jax.numpy.sum(jax.numpy.exp(params["w"])) * jax.numpy.sum(params["b"] ** 3)


def parameters(dtype=np.float64):
    return {"w": jax.numpy.array([0.1, 0.2], dtype), "b": jax.numpy.array([0.7], dtype)}


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-8), (np.float32, 1e-3)])
def test_product_equals_that_of_jax(backend, dtype, tolerance):
    v = jax.numpy.array([[1.0, 0.0], [2.0, 1.0], [3.0, 0.5]], dtype)
    product = backend.hvp(loss, parameters(dtype), None, v)
    assert isinstance(product, jax.Array)
    assert product.dtype == dtype
    np.testing.assert_allclose(product, backend.inner.hvp(loss, parameters(dtype), None, v), rtol=tolerance)


def test_gradient_by_hand_follows_the_order_of_the_pytree(backend):
    by_hand = GradientFunction(lambda params, batch: dict(reversed(jax.grad(loss)(params, batch).items())))
    params = parameters()
    np.testing.assert_array_equal(backend.grad(by_hand, params, None), backend.grad(loss, params, None))
    v = jax.numpy.arange(3.0)
    np.testing.assert_allclose(
        backend.hvp(by_hand, params, None, v), backend.inner.hvp(loss, params, None, v), rtol=1e-8
    )


def test_gradient_is_traced_once_for_all_products(backend):
    traces = []

    def counted(params, batch):
        traces.append(1)
        return loss(params, batch)

    for scale in (1.0, 2.0, 3.0):
        backend.hvp(counted, parameters(), None, scale * jax.numpy.ones(3))
    assert len(traces) == 1


def test_product_error_is_of_the_size_of_the_true_error(backend):
    v = jax.numpy.array([1.0, 2.0, 3.0])
    product, exact = (b.hvp(loss, parameters(), None, v) for b in (backend, backend.inner))
    true = float(jax.numpy.linalg.norm(product - exact))
    assert true / 10 < backend.product_error(loss, parameters(), None, v) < 100 * true


@pytest.mark.parametrize("order", [2, 4])
def test_unlike_sizes_have_products_in_the_arrays_of_jax(backend, order):
    sizes = jax.numpy.array([3e4, 0.5, 2e-5, 1.0])

    def waves(params, batch):
        return jax.numpy.sum(jax.numpy.sin(params["w"] / sizes)) ** 2

    w, backend = (
        {"w": sizes * jax.numpy.array([1.0, -0.5, 0.3, 0.0])},
        NumdiffBackend(backend.inner, order=order),
    )
    block = jax.numpy.stack([sizes, jax.numpy.ones(4), jax.numpy.eye(4)[2]], 1)
    product, exact = (b.hvp(waves, w, None, block) for b in (backend, backend.inner))
    assert isinstance(product, jax.Array)
    assert np.all(np.linalg.norm(product - exact, axis=0) < 1e-6 * np.linalg.norm(exact, axis=0))
