"""The trace: unbiased, exact where it can be, with an error that it knows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ihvp
from ihvp import errors
from ihvp.estimators import trace

METHODS = ["xtrace", "hutch++", "hutchinson"]
SEEDS = 300


@pytest.mark.parametrize("method", METHODS)
def test_the_estimate_is_unbiased(spectrum, make_rotated, method):
    operator = ihvp.Dense(make_rotated(0, spectrum))
    values = np.array([float(trace(operator, num_samples=24, method=method, seed=s)) for s in range(SEEDS)])
    assert abs(values.mean() - spectrum.sum()) < 3.5 * values.std() / SEEDS**0.5


@pytest.mark.parametrize(("method", "share"), [("xtrace", 0.6), ("hutch++", 0.85), ("hutchinson", 0.85)])
def test_the_standard_error_is_that_over_seeds(spectrum, make_rotated, method, share):
    operator = ihvp.Dense(make_rotated(0, spectrum))
    estimates = [trace(operator, num_samples=24, method=method, seed=s) for s in range(SEEDS)]
    scatter = np.std([estimate.value for estimate in estimates])
    claimed = np.sqrt(np.mean([estimate.standard_error**2 for estimate in estimates]))
    assert share < claimed / scatter < 1.25


def test_xtrace_errs_ten_times_less_than_hutchinson_where_eigenvalues_decay(make_rotated):
    values = 0.8 ** np.arange(100)
    operator = ihvp.Dense(make_rotated(1, values))
    rms = {
        method: np.sqrt(
            np.mean(
                [(trace(operator, num_samples=40, method=method, seed=s).value - 5) ** 2 for s in range(50)]
            )
        )
        for method in METHODS
    }
    assert rms["xtrace"] < rms["hutchinson"] / 10
    assert rms["xtrace"] < rms["hutch++"] < rms["hutchinson"]


@pytest.mark.parametrize("method", METHODS)
def test_as_many_samples_as_parameters_give_the_exact_trace(make_rotated, method):
    matrix = make_rotated(2, np.linspace(-1, 3, 70))
    estimate = trace(ihvp.Dense(matrix), num_samples=70, method=method)
    np.testing.assert_allclose(estimate.value, np.trace(matrix), rtol=1e-13)
    assert estimate.standard_error == 0
    assert estimate.matvecs == 70


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), size=st.integers(13, 60), rank=st.integers(0, 5))
def test_a_matrix_of_low_rank_is_exact(seed, size, rank):
    factor = np.random.default_rng(seed).normal(size=(size, rank))
    matrix = factor @ factor.T
    for method in ("xtrace", "hutch++"):
        estimate = trace(ihvp.Dense(matrix), num_samples=18 if size > 18 else 12, method=method, seed=seed)
        if method == "hutch++" and rank > 4:
            continue  # a third of twelve samples cannot show five dimensions
        np.testing.assert_allclose(estimate.value, np.trace(matrix), rtol=1e-10, atol=1e-300)
        assert estimate.standard_error <= 1e-10 * max(np.trace(matrix), 1e-300)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), count=st.integers(6, 29), method=st.sampled_from(METHODS))
def test_the_products_are_counted_and_within_what_was_allowed(seed, count, method):
    class Counting(ihvp.Dense):
        products = 0

        def apply(self, v):
            self.products += v.shape[1]
            return super().apply(v)

    operator = Counting(np.diag(np.arange(1, 31.0)))
    estimate = trace(operator, num_samples=count, method=method, seed=seed)
    assert estimate.matvecs == operator.products <= count
    assert operator.products > count - 2


def test_the_seed_fixes_the_estimate(make_rotated):
    operator = ihvp.Dense(make_rotated(3, np.arange(30.0)))
    assert trace(operator, num_samples=10, seed=4) == trace(operator, num_samples=10, seed=4)
    assert trace(operator, num_samples=10, seed=4) != trace(operator, num_samples=10, seed=5)


def test_single_precision_stays_within_its_rounding(make_rotated):
    values = 0.5 ** np.arange(80)
    operator = ihvp.Dense(make_rotated(4, values).astype(np.float32))
    assert abs(trace(operator, num_samples=60).value - values.sum()) < 1e-4


def test_one_parameter_is_enough():
    assert trace(ihvp.Dense(np.array([[3.0]]))).value == 3


@pytest.mark.parametrize("count", [0, -1, 11, 2.5, "all"])
def test_a_number_of_samples_out_of_range_is_refused(count):
    with pytest.raises(errors.InvalidOption, match="num_samples"):
        trace(ihvp.Dense(np.eye(10)), num_samples=count)


@pytest.mark.parametrize(("method", "least"), [("xtrace", 4), ("hutch++", 6), ("hutchinson", 2)])
def test_too_few_samples_for_a_standard_error_are_refused(method, least):
    with pytest.raises(errors.InvalidOption, match=f"at least {least}"):
        trace(ihvp.Dense(np.eye(10)), num_samples=least - 1, method=method)
    trace(ihvp.Dense(np.eye(10)), num_samples=least, method=method)


def test_an_unknown_method_is_refused():
    with pytest.raises(errors.InvalidOption, match="'xtrace', 'hutch\\+\\+' or 'hutchinson'"):
        trace(ihvp.Dense(np.eye(10)), method="exact")


def test_a_product_that_is_not_finite_is_an_error():
    with pytest.raises(errors.NonFinite):
        trace(ihvp.Dense(np.diag([1.0, np.nan])))
