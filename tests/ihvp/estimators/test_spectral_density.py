"""Stochastic Lanczos quadrature against the eigenvalues themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import trapezoid

import ihvp
from ihvp import errors
from ihvp.estimators import spectral_density


def test_expectations_are_unbiased(spectrum, make_rotated):
    operator = ihvp.Dense(make_rotated(0, spectrum))
    densities = [spectral_density(operator, num_samples=2, steps=12, seed=seed) for seed in range(150)]
    for function in (np.ones_like, np.positive, lambda t: t**3, np.exp):
        values = np.array([density.expectation(function).value for density in densities])
        error = abs(values.mean() - function(spectrum).mean())
        assert error <= 3.5 * values.std() / 150**0.5 + 1e-12
    # And the standard error is that over seeds.
    estimates = [density.expectation(np.square) for density in densities]
    scatter = np.std([estimate.value for estimate in estimates])
    claimed = np.sqrt(np.mean([estimate.standard_error**2 for estimate in estimates]))
    assert 0.8 < claimed / scatter < 1.25


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000), size=st.integers(1, 40), steps=st.integers(1, 8), degree=st.integers(0, 15)
)
def test_each_probe_integrates_polynomials_below_twice_the_steps_exactly(seed, size, steps, degree):
    rng = np.random.default_rng(seed)
    values = rng.uniform(-1, 1, size)
    steps = min(steps, size)
    density = spectral_density(ihvp.Dense(np.diag(values)), num_samples=1, steps=steps, seed=seed)
    probe = np.random.default_rng(seed).standard_normal(size)
    if degree < 2 * steps:
        expected = np.sum(probe**2 * values**degree) / np.sum(probe**2)
        np.testing.assert_allclose(density.expectation(lambda t: t**degree).value, expected, atol=1e-9)


def test_as_many_steps_as_parameters_find_every_eigenvalue(make_rotated):
    values = np.linspace(-2, 3, 25)
    density = spectral_density(ihvp.Dense(make_rotated(1, values)), num_samples=3, steps=25)
    np.testing.assert_allclose(density.nodes, np.tile(values, (3, 1)), atol=1e-9)


def test_outlying_eigenvalues_have_no_copies(make_rotated):
    # Without reorthogonalisation the eigenvalue 1e4 would come back after some ten steps.
    values = np.r_[1e4, np.linspace(0, 1, 199)]
    density = spectral_density(ihvp.Dense(make_rotated(2, values)), num_samples=4, steps=60)
    assert np.all(np.sum(density.nodes > 2, axis=1) == 1)
    assert density.nodes.min() > -1e-9


def test_a_krylov_space_that_ends_early_costs_no_more_products():
    density = spectral_density(ihvp.Dense(np.diag([1.0] * 10 + [5.0] * 10)), num_samples=3, steps=20)
    assert density.matvecs == 6
    np.testing.assert_allclose(density.weights.sum(axis=1), 1, rtol=1e-12)
    assert np.count_nonzero(density.weights) == 6
    np.testing.assert_allclose(density.cumulative([0.5, 3.0, 6.0])[[0, 2]], [0, 1], atol=1e-12)


def test_the_log_determinant_of_a_definite_matrix_comes_out(make_rotated):
    values = np.geomspace(1e-2, 10, 100)
    log = spectral_density(ihvp.Dense(make_rotated(3, values)), num_samples=40, steps=40).expectation(np.log)
    assert abs(log.value - np.log(values).mean()) < 3.5 * log.standard_error
    assert log.standard_error < 0.1


def test_the_cumulative_density_is_that_of_the_eigenvalues(make_rotated):
    values = np.linspace(0, 1, 200) ** 2
    density = spectral_density(ihvp.Dense(make_rotated(4, values)), num_samples=30, steps=60)
    grid = np.array([-0.1, 0.1, 0.25, 0.5, 0.9, 1.1])
    expected = np.mean(values[:, None] <= grid, axis=0)
    np.testing.assert_allclose(density.cumulative(grid), expected, atol=0.03)
    np.testing.assert_allclose(density.cumulative(grid, width=1e-3), expected, atol=0.03)


def test_the_density_is_the_derivative_of_the_smooth_cumulative(make_rotated):
    density = spectral_density(ihvp.Dense(make_rotated(5, np.linspace(0, 1, 50))), num_samples=4, steps=20)
    grid = np.linspace(-1, 2, 3001)
    slopes = np.gradient(density.cumulative(grid, width=0.05), grid)
    np.testing.assert_allclose(density.density(grid, width=0.05), slopes, atol=1e-3)
    np.testing.assert_allclose(trapezoid(density.density(grid), grid), 1, rtol=1e-3)


def test_a_zero_matrix_has_all_its_weight_at_zero():
    density = spectral_density(ihvp.Dense(np.zeros((5, 5))))
    np.testing.assert_array_equal(density.nodes[density.weights > 0], 0)
    np.testing.assert_array_equal(density.cumulative([-1e-9, 0.0]), [0, 1])
    assert np.isfinite(density.density(0.0))


def test_other_array_libraries_give_the_same_density(make_rotated):
    torch = pytest.importorskip("torch")
    matrix = make_rotated(6, np.linspace(-1, 1, 30))
    here = spectral_density(ihvp.Dense(matrix), num_samples=3, steps=10)
    there = spectral_density(ihvp.Dense(torch.asarray(matrix)), num_samples=3, steps=10)
    np.testing.assert_allclose(there.nodes, here.nodes, atol=1e-12)
    np.testing.assert_allclose(there.weights, here.weights, atol=1e-12)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *((option, value) for option in ("num_samples", "steps") for value in (0, -3, 1.5, True)),
        ("steps", 11),
    ],
)
def test_counts_out_of_range_are_refused(option, value):
    with pytest.raises(errors.InvalidOption, match=option):
        spectral_density(ihvp.Dense(np.eye(10)), **{option: value})


@pytest.mark.parametrize("width", [0.0, -1.0, np.nan])
def test_a_width_that_is_not_positive_is_refused(width):
    with pytest.raises(errors.InvalidOption, match="width"):
        spectral_density(ihvp.Dense(np.eye(3))).density([0.0], width)


def test_more_samples_than_parameters():
    density = spectral_density(ihvp.Dense(np.diag([1.0, 5.0])), num_samples=200, steps=2)
    estimate = density.expectation(lambda t: t)
    assert abs(estimate.value - 3) < 4 * estimate.standard_error
    assert repr(density) == "SpectralDensity(400 nodes from 1 to 5, num_samples=200, steps=2, matvecs=400)"
