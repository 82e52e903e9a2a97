"""Orthonormal bases of tall blocks, against singular value decompositions in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ihvp.orthogonal import orthonormal


def block_with(rng, size, singular_values, dtype=np.float64):
    """A block with these singular values."""
    columns = len(singular_values)
    left = np.linalg.qr(rng.normal(size=(size, columns)))[0]
    right = np.linalg.qr(rng.normal(size=(columns, columns)))[0]
    return ((left * singular_values) @ right).astype(dtype)


def deviation(vectors):
    vectors = vectors.astype(np.float64)
    return np.abs(vectors.T @ vectors - np.eye(vectors.shape[1])).max()


def assert_reproduces(block, basis):
    """``Q C`` is the block, each column to the rounding of its own size."""
    product = basis.vectors.astype(np.float64) @ basis.coefficients
    error = np.linalg.norm(product - block, axis=0)
    eps = np.finfo(block.dtype).eps
    assert np.all(error <= 30 * eps * block.shape[1] ** 0.5 * np.linalg.norm(block.astype(float), axis=0))


@pytest.mark.parametrize(
    ("dtype", "condition"),
    [
        (np.float32, 1),
        (np.float32, 1e3),
        (np.float32, 1e5),
        (np.float64, 1e4),
        (np.float64, 1e9),
        (np.float64, 1e13),
    ],
)
def test_basis_is_orthonormal_to_rounding_however_nearly_dependent_the_columns(rng, dtype, condition):
    block = block_with(rng, 500, np.geomspace(1, 1 / condition, 8), dtype)
    basis = orthonormal(block.copy())
    assert basis.vectors.shape == (500, 8)
    assert deviation(basis.vectors) <= 30 * np.finfo(dtype).eps
    assert_reproduces(block, basis)


def test_gram_is_that_of_the_vectors_and_as_near_to_the_identity_as_asked(rng):
    block = block_with(rng, 300, np.geomspace(1, 1e-6, 6))
    basis = orthonormal(block, deviation=0.1)
    np.testing.assert_allclose(basis.gram, basis.vectors.T @ basis.vectors, atol=1e-14)
    assert np.abs(basis.gram - np.eye(6)).max() <= 0.1


def test_gram_is_not_measured_where_rounding_cannot_matter(rng):
    basis = orthonormal(block_with(rng, 300, np.geomspace(1, 0.1, 6)), deviation=0.1)
    np.testing.assert_array_equal(basis.gram, np.eye(6))
    assert deviation(basis.vectors) <= np.finfo(np.float64).eps ** 0.5


def test_one_gram_and_one_product_do_for_a_well_conditioned_block(rng, monkeypatch):
    from ihvp import algebra

    calls = []
    for name in ("gram", "multiply"):
        original = getattr(algebra, name)
        monkeypatch.setattr(
            algebra, name, lambda *arrays, f=original, name=name: (calls.append(name), f(*arrays))[1]
        )
    orthonormal(block_with(rng, 300, np.geomspace(1, 0.1, 6)), deviation=0.1)
    assert calls == ["gram", "multiply"]


def test_dependent_columns_are_no_directions(rng):
    block = rng.normal(size=(50, 3))
    block = np.column_stack([block, block[:, 0], block @ [1.0, 2.0, 3.0], np.zeros(50)])
    basis = orthonormal(block.copy())
    assert basis.vectors.shape == (50, 3)
    assert basis.coefficients.shape == (3, 6)
    np.testing.assert_allclose(basis.coefficients[:, 3], basis.coefficients[:, 0], atol=1e-13)
    np.testing.assert_array_equal(basis.coefficients[:, 5], 0)
    assert_reproduces(block, basis)


def test_columns_that_differ_by_1e_8_keep_the_direction_of_their_difference(rng):
    first, difference = np.linalg.qr(rng.normal(size=(200, 2)))[0].T
    basis = orthonormal(np.stack([first, first + 1e-8 * difference], axis=1))
    assert basis.vectors.shape == (200, 2)
    # The difference itself is known to eps / 1e-8.
    assert np.linalg.norm(basis.vectors.T @ difference) == pytest.approx(1, abs=1e-7)


def test_more_columns_than_rows_give_a_basis_of_the_whole_space(rng):
    block = rng.normal(size=(5, 12))
    basis = orthonormal(block.copy())
    assert basis.vectors.shape == (5, 5)
    assert deviation(basis.vectors) <= 1e-14
    assert_reproduces(block, basis)


def test_zero_block_has_an_empty_basis():
    basis = orthonormal(np.zeros((7, 2)))
    assert basis.vectors.shape == (7, 0)
    assert basis.coefficients.shape == (0, 2)


def test_columns_of_any_scale_count_alike(rng):
    block = rng.normal(size=(100, 4)).astype(np.float32) * np.array([1e-30, 1, 1e10, 1e30], np.float32)
    basis = orthonormal(block.copy())
    assert basis.vectors.shape == (100, 4)
    assert_reproduces(block, basis)


def test_columns_below_the_rounding_of_a_given_scale_are_no_directions(rng):
    block = rng.normal(size=(100, 2)) * [1.0, 1e-12]
    assert orthonormal(block.copy(), scale=1.0).vectors.shape == (100, 2)
    assert orthonormal(block.copy(), scale=1e6).vectors.shape == (100, 1)


@settings(max_examples=150, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 40),
    columns=st.integers(1, 60),
    decades=st.floats(0, 17),
    copies=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_random_blocks_are_reproduced_by_an_orthonormal_basis(seed, size, columns, decades, copies, dtype):
    rng = np.random.default_rng(seed)
    rank = min(size, columns)
    block = block_with(rng, size, 10 ** (-decades * rng.uniform(size=rank)))
    block = (block @ rng.normal(size=(rank, columns)) if columns > rank else block).astype(dtype)
    if copies:
        block[:, columns // 2 :] = block[:, : columns - columns // 2]
    basis = orthonormal(block.copy())
    assert basis.vectors.shape[1] <= rank
    assert deviation(basis.vectors) <= 30 * np.finfo(dtype).eps * rank**0.5
    assert_reproduces(block, basis)
