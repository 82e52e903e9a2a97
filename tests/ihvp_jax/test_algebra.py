"""The core's vector algebra on JAX's arrays, beyond the length that one sum takes elsewhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ihvp import algebra
from ihvp.algebra import dot_parts
from ihvp.eigen.basis import GrowingBasis
from ihvp.space import VectorSpace

LONG = (1 << 20) + 12_345


@pytest.mark.parametrize("shape", [(LONG,), (LONG, 2)])
def test_dot_products_of_long_vectors_keep_their_digits(rng, shape):
    x, y = (rng.uniform(0.5, 1.5, size=shape).astype(np.float32) for _ in range(2))
    exact = np.sum(x.astype(np.float64) * y, axis=0)
    np.testing.assert_allclose(algebra.dots(jnp.array(x), jnp.array(y)), exact, rtol=1e-6)


def test_dot_products_of_long_vectors_take_no_memory_beside_them():
    x = jnp.ones(LONG, jnp.float32)
    compiled = jax.jit(dot_parts).lower(x, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < x.nbytes / 10


@pytest.mark.parametrize("size", [60, LONG])
def test_a_basis_stays_orthonormal_until_it_is_full(rng, size):
    basis = GrowingBasis(VectorSpace.of(jnp.zeros(size, jnp.float32)), 5)
    for _ in range(5):
        w = jnp.array(rng.normal(size=size).astype(np.float32))
        rest, _, norm = basis.orthogonalise(w)
        basis.append(algebra.scale(rest, 1 / norm))
    columns = basis.combinations(np.eye(5))
    np.testing.assert_allclose(algebra.gram(columns, columns), np.eye(5), atol=5e-6)


@pytest.mark.parametrize("rows", [50, 50_000])
def test_small_and_large_blocks_have_the_same_products(rng, rows):
    x, matrix = rng.normal(size=(rows, 4)), rng.normal(size=(4, 3))
    result = algebra.multiply(jnp.array(x), matrix)
    np.testing.assert_allclose(result, x @ matrix, rtol=1e-12, atol=1e-12)
