"""Random projections: what they keep of inner products, and that seeds alone make them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import ihvp
from ihvp.errors import InvalidOption
from ihvp.projection.map import DenseMap, SparseMap

KINDS = ["sparse", "rademacher", "gaussian"]


def made(kind, dim, size, seed=0):
    return (SparseMap if kind == "sparse" else DenseMap)(ihvp.Projection(dim, kind, seed), size)


def matrix(projection, size):
    return projection.project(np.eye(size)).T


@pytest.mark.parametrize("kind", KINDS)
def test_inner_products_are_kept_on_average(kind):
    """1e5 pairs; the pairs of one matrix are not independent, so matrices of several seeds are drawn."""
    dim, size, count, seeds = 128, 1000, 100, 20
    x = np.random.default_rng(1).standard_normal((count, size))
    x[:, :10] *= 10  # not alike everywhere, as gradients are not
    norms = np.linalg.norm(x, axis=1)
    errors = []
    for seed in range(seeds):
        y = made(kind, dim, size, seed).project(x)
        errors.append(((y @ y.T - x @ x.T) / np.outer(norms, norms))[np.triu_indices(count, 1)])
    errors = np.array(errors)
    assert errors.size >= 99_000
    assert np.sqrt(np.mean(errors**2)) <= 3 / dim**0.5
    # The means over pairs are independent between seeds: of twenty, the mean is zero within four deviations.
    means = errors.mean(axis=1)
    assert abs(means.mean()) <= 4 * max(means.std() / seeds**0.5, 1e-4)
    assert np.std(errors) <= 1.15 * dim**-0.5


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(size=st.integers(1, 60), dim=st.integers(1, 60), seed=st.integers(0, 5), rows=st.integers(0, 70))
def test_pulling_back_is_the_transpose(kind, size, dim, seed, rows):
    dim = min(dim, size)
    projection = made(kind, dim, size, seed)
    R = matrix(projection, size)
    assert R.shape == (dim, size)
    x, y = np.random.default_rng(seed).standard_normal((2, rows, size))
    assert_allclose(projection.project(x), x @ R.T, rtol=1e-12, atol=1e-12)
    assert_allclose(projection.pull_back(y @ R.T), y @ R.T @ R, rtol=1e-12, atol=1e-12)


def test_a_sparse_one_has_one_sign_in_each_column():
    R = matrix(made("sparse", 7, 40), 40)
    assert_array_equal(np.abs(R).sum(axis=0), np.ones(40))
    assert set(np.unique(R)) == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_alone_makes_it(kind, monkeypatch):
    x = np.random.default_rng(0).standard_normal((3, 50))
    first = made(kind, 8, 50, 3).project(x)
    assert_array_equal(made(kind, 8, 50, 3).project(x), first)
    assert not np.allclose(made(kind, 8, 50, 4).project(x), first)
    assert made(kind, 8, 50, 3).project(x.astype(np.float32)).dtype == np.float32


def test_large_dense_ones_are_never_whole(monkeypatch):
    pieces = []
    original = DenseMap._pieces

    def seen(self):
        for start, piece in original(self):
            pieces.append(piece.size)
            yield start, piece

    monkeypatch.setattr(DenseMap, "_pieces", seen)
    made("rademacher", 1 << 12, 1 << 13).project(np.ones((1, 1 << 13)))
    assert len(pieces) == 8
    assert max(pieces) <= 1 << 22


@pytest.mark.parametrize("options", [(0,), (2.5,), (4, "hadamard"), (4, "sparse", -1)])
def test_bad_options(options):
    with pytest.raises(InvalidOption):
        ihvp.Projection(*options)


@pytest.mark.parametrize("kind", KINDS)
def test_more_numbers_than_parameters(kind):
    with pytest.raises(InvalidOption, match="at most 12, the number of parameters"):
        made(kind, 13, 12)
