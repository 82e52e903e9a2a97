"""The suggested damping: enough, and not much more."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ihvp
from ihvp import errors
from ihvp.estimators import suggest_damping


@pytest.mark.parametrize("condition", [10.0, 1e4, 1e8])
def test_the_damped_matrix_has_the_condition_number_asked_for(make_rotated, condition):
    values = np.linspace(-1, 3, 40)
    damping = suggest_damping(ihvp.Dense(make_rotated(0, values)), condition=condition)
    assert (3 + damping) / (-1 + damping) == pytest.approx(condition, rel=1e-5)


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 80), definite=st.booleans())
def test_cg_solves_with_the_suggestion(seed, size, definite):
    rng = np.random.default_rng(seed)
    values = rng.uniform(0, 1, size) if definite else rng.normal(size=size)
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    operator = ihvp.Dense((basis * values) @ basis.T)
    damping = suggest_damping(operator, condition=1e6, seed=seed)
    assert damping == 0 or values.min() + damping > 0
    assert ihvp.solve(operator, rng.normal(size=size), damping).converged


def test_fewer_steps_than_parameters_leave_room_for_what_they_have_not_seen(make_rotated):
    # A dense edge, where 20 steps stop short of the lowest eigenvalue by more than the margin for rounding.
    values = np.linspace(-1, 1, 300)
    operator = ihvp.Dense(make_rotated(1, values))
    for seed in range(20):
        damping = suggest_damping(operator, steps=20, seed=seed)
        assert 1 < damping < 1.2


def test_a_well_conditioned_matrix_needs_none(make_rotated):
    assert suggest_damping(ihvp.Dense(make_rotated(2, np.linspace(1, 2, 30)))) == 0


def test_a_singular_matrix_gets_half_the_digits(make_rotated):
    values = np.r_[np.zeros(10), np.linspace(1, 4, 20)]
    damping = suggest_damping(ihvp.Dense(make_rotated(3, values)))
    assert damping == pytest.approx(4 * np.finfo(np.float64).eps ** 0.5, rel=1e-3)


def test_a_zero_matrix_gets_one():
    assert suggest_damping(ihvp.Dense(np.zeros((3, 3)))) == 1


def test_single_precision_gets_its_own_condition_number():
    operator = ihvp.Dense(np.diag(np.array([0.0, 1.0], dtype=np.float32)))
    assert suggest_damping(operator) == pytest.approx(np.finfo(np.float32).eps ** 0.5, rel=1e-2)


def test_the_products_are_the_steps(make_rotated):
    class Counting(ihvp.Dense):
        products = 0

        def apply(self, v):
            self.products += v.shape[1]
            return super().apply(v)

    operator = Counting(make_rotated(4, np.linspace(-1, 1, 30)))
    suggest_damping(operator, steps=7)
    assert operator.products == 7


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"steps": 4}, {"condition": 1.0}, {"condition": np.inf}, {"condition": np.nan}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(errors.InvalidOption, match=next(iter(options))):
        suggest_damping(ihvp.Dense(np.eye(3)), **options)
