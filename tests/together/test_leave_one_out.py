"""Removals of digits, predicted by every framework and trained again to the exact optimum."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from ihvp.experiments import digits

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "leave_one_out.py"
BACKENDS = ("torch", "jax", "tf", "numdiff")


@functools.cache
def example():
    spec = importlib.util.spec_from_file_location("leave_one_out_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def model():
    return example().Model()


@functools.cache
def removals(backend, setting, **options):
    """Of sixty digits, or of the first fifteen of them where a framework only supplies the products."""
    removed = np.random.default_rng(0).choice(1500, 60, replace=False)[: 60 if backend == "numdiff" else 15]
    chosen = dict(example().SETTINGS[setting])
    chosen["solver"] = dataclasses.replace(chosen["solver"], **options)
    return example().measure(model(), backend, removed, chosen)


def test_the_model_is_at_its_optimum():
    gradient = digits.regularised_gradient({"weights": model().weights}, model().train.batch())["weights"]
    assert np.linalg.norm(gradient) <= 1e-8


def test_each_removal_is_trained_to_its_optimum():
    removals("numdiff", "CG")
    for removed, weights in model().known.items():
        masses = np.ones(1500)
        masses[list(removed)] = 0
        gradient = digits.regularised_gradient({"weights": weights}, model().train.batch(masses))["weights"]
        assert np.linalg.norm(gradient) <= 1e-8


@pytest.mark.parametrize("setting", ["CG", "Direct"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_predictions_are_the_actual_changes_to_first_order(backend, setting):
    found = removals(backend, setting)
    assert found.pearson.value >= 0.995
    assert found.slope == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_newton_step_has_the_right_size(backend):
    found = removals(backend, "CG, second order")
    assert found.pearson.value >= 0.995
    assert found.slope == pytest.approx(1, abs=0.02)


def test_lissa_is_good_enough_for_a_ranking():
    # A fifth of the default steps is enough. That the products may be of any framework, test_lissa shows.
    assert removals("numdiff", "LiSSA", recursion_depth=1000).pearson.value >= 0.98
