"""What a linearised batch keeps: nothing that is zero by construction."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ihvp_jax._backend import JaxBackend

CLASSES, WIDTH, EXAMPLES = 3, 4, 7


def cross_entropy(w: jax.Array, batch: tuple) -> jax.Array:
    inputs, labels = batch
    scores = jax.nn.log_softmax(inputs @ w)
    return -jnp.take_along_axis(scores, labels[:, None], axis=1).mean()


def softmax_hessian(w: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """The textbook's mean of ``(diag p − p pᵀ) ⊗ x xᵀ``, for w in row-major order."""
    scores = np.exp(inputs @ w)
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    blocks = [
        np.kron(np.outer(x, x), np.diag(p) - np.outer(p, p))
        for x, p in zip(inputs, probabilities, strict=True)
    ]
    return np.mean(blocks, axis=0)


def test_a_cross_entropy_keeps_no_zeros_and_has_the_textbook_hessian(backend, rng):
    inputs, labels = rng.normal(size=(EXAMPLES, WIDTH)), rng.integers(CLASSES, size=EXAMPLES)
    w = rng.normal(size=(WIDTH, CLASSES))
    linear = backend.linearize(cross_entropy, jnp.array(w), (jnp.array(inputs), jnp.array(labels)))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(linear._known[0]))
    product = linear(jnp.eye(w.size))
    np.testing.assert_allclose(product, softmax_hessian(w, inputs), rtol=1e-10, atol=1e-12)


def test_values_that_happen_to_be_zero_are_kept(backend):
    def cubic(w: jax.Array, batch: None) -> jax.Array:
        return (w**3).sum()

    def product(point: float) -> float:
        return float(backend.linearize(cubic, jnp.array([point]), None)(jnp.ones(1))[0])

    assert (product(0.0), product(2.0)) == (0.0, 12.0)


def test_a_loss_without_curvature_has_the_product_zero(backend):
    def line(w: jax.Array, batch: None) -> jax.Array:
        return (3.0 * w).sum()

    np.testing.assert_array_equal(backend.linearize(line, jnp.ones(2), None)(jnp.ones((2, 2))), 0.0)


def test_half_precision_has_products_in_float32():
    backend, w = JaxBackend(), jnp.ones((WIDTH, CLASSES), jnp.float16)
    batch = (jnp.ones((EXAMPLES, WIDTH), jnp.float16), jnp.zeros(EXAMPLES, jnp.int32))
    product = backend.linearize(cross_entropy, w, batch)(jnp.ones(w.size, jnp.float32))
    assert product.dtype == jnp.float32
