"""Numbers of calibration against sums by hand and made probabilities that are right."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

import ihvp
from ihvp.errors import InvalidOption

P = np.array([[0.9, 0.1, 0.0], [0.2, 0.75, 0.05], [0.3, 0.3, 0.4], [0.1, 0.1, 0.8]])
Y = np.array([0, 1, 0, 2])


def test_by_hand():
    found = ihvp.calibration(P, Y, num_bins=2)
    assert_allclose(found.accuracy.value, 0.75)
    assert_allclose(found.negative_log_likelihood.value, -np.log([0.9, 0.75, 0.3, 0.8]).mean())
    one_hot = np.eye(3)[Y]
    assert_allclose(found.brier.value, ((P - one_hot) ** 2).sum(axis=1).mean())
    assert_allclose(found.counts, [1, 3])
    assert_allclose(found.confidences, [0.4, (0.9 + 0.75 + 0.8) / 3])
    assert_allclose(found.accuracies, [0, 1])
    assert_allclose(found.expected_calibration_error.value, 0.25 * 0.4 + 0.75 * (1 - 2.45 / 3))


def test_standard_errors_are_those_of_other_examples():
    def draw(seed):
        rng = np.random.default_rng(seed)
        p = rng.dirichlet([1, 2, 3], 400)
        sharper = p**2 / (p**2).sum(axis=1, keepdims=True)
        labels = (p.cumsum(axis=1) < rng.random((400, 1))).sum(axis=1)
        return ihvp.calibration(sharper, labels, num_bins=5)

    found = [draw(seed) for seed in range(200)]
    for name in ("accuracy", "negative_log_likelihood", "brier", "expected_calibration_error"):
        values = [getattr(one, name).value for one in found]
        told = np.mean([getattr(one, name).standard_error for one in found])
        assert told == pytest.approx(np.std(values), rel=0.2), name


def test_of_calibrated_probabilities_the_error_is_what_chance_makes():
    rng = np.random.default_rng(0)
    p = rng.random(5000)
    found = [ihvp.calibration(p, (rng.random(5000) < p).astype(int)) for _ in range(50)]
    errors = [one.expected_calibration_error.value for one in found]
    assert np.mean(errors) == pytest.approx(found[0].by_chance, rel=0.1)


def test_one_column_is_the_probability_of_class_one():
    p = np.array([0.2, 0.9])
    both = ihvp.calibration(np.stack([1 - p, p], axis=1), [0, 1])
    for one in (p, p[:, None]):
        assert ihvp.calibration(one, [0, 1]).brier == both.brier


def test_a_label_of_probability_zero():
    assert ihvp.calibration([[1.0, 0.0]], [1]).negative_log_likelihood.value == np.inf


@pytest.mark.parametrize(
    ("p", "y", "says"),
    [
        (P, Y[:3], "shape"),
        (P[0, 0], Y, "shape"),
        (np.zeros((0, 2)), np.zeros(0, int), "n ≥ 1"),
        (P * 2, Y, "softmax"),
        (P - 0.5, Y, "softmax"),
        (P * np.nan, Y, "sum 1"),
        (P, Y + 1, "from 0 to 2"),
        (P, Y - 1, "from 0 to 2"),
        (P, Y * 1.0, "labels"),
        (P, ["a"] * 4, "labels"),
    ],
)
def test_other_shapes_and_values(p, y, says):
    with pytest.raises(InvalidOption, match=says):
        ihvp.calibration(p, y)


def test_coverage_of_normal_targets():
    rng = np.random.default_rng(0)
    mean, sd = rng.normal(size=(4000, 2)), rng.uniform(0.5, 2, (4000, 2))
    y = mean + sd * rng.normal(size=mean.shape)
    found = ihvp.coverage(mean, sd, y)
    assert_allclose(found.levels, [0.5, 0.9, 0.95])
    assert np.all(np.abs(found.observed - found.levels) < 3 * found.standard_errors)
    assert_allclose(found.standard_errors[0], 0.5 / 8000**0.5)
    # Half the entropy of the normals.
    expected = np.mean(np.log(sd)) + np.log(2 * np.pi * np.e) / 2
    assert (
        abs(found.negative_log_likelihood.value - expected) < 3 * found.negative_log_likelihood.standard_error
    )
    assert ihvp.coverage(mean, sd / 2, y).observed[2] < 0.75


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((np.ones(3), np.ones(3), np.ones(2)), "one shape"),
        ((np.ones(0), np.ones(0), np.ones(0)), "one shape"),
        ((np.ones(3), np.zeros(3), np.ones(3)), "standard_deviation"),
        ((np.ones(3), np.full(3, np.nan), np.ones(3)), "standard_deviation"),
    ],
)
def test_coverage_of_other_shapes_and_values(arguments, says):
    with pytest.raises(InvalidOption, match=says):
        ihvp.coverage(*arguments)
    with pytest.raises(InvalidOption, match="levels"):
        ihvp.coverage(np.ones(3), np.ones(3), np.ones(3), levels=[1.0])
    with pytest.raises(InvalidOption, match="levels"):
        ihvp.coverage(np.ones(3), np.ones(3), np.ones(3), levels=0.9)
    with pytest.raises(InvalidOption, match="not finite"):
        ihvp.coverage(np.ones(3), np.ones(3), np.full(3, np.nan))
