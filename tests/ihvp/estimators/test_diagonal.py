"""The diagonal: unbiased in each entry, exact where it can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ihvp
from ihvp import errors
from ihvp.estimators import diagonal


def test_every_entry_is_unbiased(spectrum, make_rotated):
    matrix = make_rotated(0, spectrum)
    values = np.array([diagonal(ihvp.Dense(matrix), num_samples=24, seed=seed).value for seed in range(400)])
    deviations = (values.mean(axis=0) - np.diag(matrix)) / (values.std(axis=0) / 20)
    assert np.abs(deviations).max() < 4.5
    assert np.sqrt(np.mean(deviations**2)) < 1.4


def test_the_standard_errors_are_those_over_seeds(spectrum, make_rotated):
    operator = ihvp.Dense(make_rotated(0, spectrum))
    estimates = [diagonal(operator, num_samples=24, seed=seed) for seed in range(300)]
    scatter = np.mean(np.var([estimate.value for estimate in estimates], axis=0))
    claimed = np.mean([estimate.standard_error**2 for estimate in estimates])
    assert 0.6 < np.sqrt(claimed / scatter) < 1.25


def test_as_many_samples_as_parameters_give_the_exact_diagonal(make_rotated):
    matrix = make_rotated(2, np.linspace(-1, 3, 70))
    estimate = diagonal(ihvp.Dense(matrix), num_samples=70)
    np.testing.assert_allclose(estimate.value, np.diag(matrix), rtol=1e-14)
    assert not np.any(estimate.standard_error)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), size=st.integers(13, 60), rank=st.integers(0, 4))
def test_a_matrix_of_low_rank_is_exact(seed, size, rank):
    factor = np.random.default_rng(seed).normal(size=(size, rank))
    estimate = diagonal(ihvp.Dense(factor @ factor.T), num_samples=12, seed=seed)
    np.testing.assert_allclose(estimate.value, np.sum(factor**2, axis=1), rtol=0, atol=1e-9)


def test_the_products_are_counted(make_rotated):
    assert diagonal(ihvp.Dense(make_rotated(1, np.linspace(1, 2, 40))), num_samples=21).matvecs == 20


@pytest.mark.parametrize("count", [0, 3, 11, 2.5])
def test_a_number_of_samples_out_of_range_is_refused(count):
    with pytest.raises(errors.InvalidOption, match="num_samples"):
        diagonal(ihvp.Dense(np.eye(10)), num_samples=count)


def test_the_native_array_type_is_kept():
    torch = pytest.importorskip("torch")
    estimate = diagonal(ihvp.Dense(torch.diag(torch.arange(1.0, 41.0))), num_samples=20)
    assert isinstance(estimate.value, torch.Tensor)
    assert estimate.value.dtype == estimate.standard_error.dtype == torch.float32
