"""What a function of weights may return, and what is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import ihvp
from ihvp.errors import InvalidOption, WeightError
from ihvp.weighting import Weighting, scale_rows

BATCH = np.arange(3.0)


@pytest.mark.parametrize(
    "returned",
    [
        [1, 2, 0],
        (1.0, 2.0, 0.0),
        np.array([1, 2, 0]),
        np.array([1, 2, 0], np.float16),
        np.array([1, 2, 0], np.uint8),
        np.array([1, 2, 0], object),
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')}",
)
def test_numbers_in_any_form_are_weights(returned):
    weighting = Weighting(lambda batch: returned)
    assert_array_equal(weighting.of(BATCH, 3), [1.0, 2.0, 0.0])
    assert weighting.total(BATCH, 3) == 3.0


def test_booleans_say_which_examples_count():
    assert_array_equal(Weighting(lambda batch: batch > 0).of(BATCH, 3), [0, 1, 1])


def test_without_a_function_each_example_weighs_one():
    assert_array_equal(Weighting().of(BATCH, 3), [1, 1, 1])
    assert Weighting().total(BATCH, 3) == 3


def fails(batch):
    raise KeyError("labels")


WRONG = {
    "nothing": (lambda batch: None, "returned None"),
    "a string": (lambda batch: "abc", "returned str"),
    "strings of digits": (lambda batch: ["1", "2", "3"], "returned list"),
    "a dict": (lambda batch: {}, "returned dict"),
    "one number": (lambda batch: 1.0, r"returned shape \(\) for 3 examples"),
    "a column": (lambda batch: np.ones((3, 1)), r"returned shape \(3, 1\) for 3 examples"),
    "too few": (lambda batch: np.ones(2), r"returned shape \(2,\) for 3 examples"),
    "complex numbers": (lambda batch: np.ones(3) + 1j, r"returned numpy\.ndarray of shape \(3,\)"),
    "dates": (lambda batch: np.array(["2020"] * 3, "M8[D]"), r"returned numpy\.ndarray of shape \(3,\)"),
    "a negative one": (lambda batch: np.array([1, -2, 3]), r"returned -2\.0 for example 1 of the batch"),
    "NaN": (lambda batch: np.array([1, 2, np.nan]), "returned nan for example 2 of the batch"),
    "infinity": (lambda batch: np.array([np.inf, 2, 3]), "returned inf for example 0 of the batch"),
    "an error": (fails, "failed with KeyError: 'labels'"),
}


@pytest.mark.parametrize(("weights", "found"), WRONG.values(), ids=WRONG)
def test_what_is_no_weight_for_each_example_is_named(weights, found):
    with pytest.raises(
        WeightError, match=rf"^weights\(batch\) {found}; expected a finite number ≥ 0 for each"
    ):
        Weighting(weights).of(BATCH, 3)


USES = {
    "gradient": lambda o: o.gradient(),
    "value": lambda o: o.value(),
    "rows": lambda o: o.per_example_gradients(),
    "product": lambda o: ihvp.Hessian(o) @ np.ones(1),
    "outer product": lambda o: ihvp.OPG(o) @ np.ones(1),
    "outer product, dense": lambda o: ihvp.OPG(o).to_dense(),
    "sample": lambda o: ihvp.Hessian(o).sampler(1)(np.random.default_rng(0)).to_dense(),
    "scores": lambda o: ihvp.Influence(o).scores(BATCH),
}


def objective(weights, batch_size=None):
    return ihvp.Objective(
        lambda w, x: float(((w - x) ** 2).mean() / 2),
        np.zeros(1),
        BATCH,
        batch_size,
        grad=lambda w, x: w - x.mean(),
        weights=weights,
    )


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize(
    ("weights", "found"),
    [
        (lambda x: np.zeros(len(x)), "weights of all examples are 0"),
        (lambda x: -np.ones(len(x)), r"returned -1\.0 for example 0"),
        (lambda x: np.ones((len(x), 1)), r"returned shape \(\d, 1\)"),
    ],
    ids=["all 0", "negative", "column"],
)
def test_every_use_names_wrong_weights(use, batch_size, weights, found):
    with pytest.raises(WeightError, match=found):
        use(objective(weights, batch_size))


@pytest.mark.parametrize("weights", [3.0, np.ones(3), "tokens"])
def test_weights_are_a_function(weights):
    with pytest.raises(InvalidOption, match=r"weights is .*; expected a function weights\(batch\) -> \(B,\)"):
        objective(weights)
    with pytest.raises(InvalidOption, match="weights is"):
        objective(None).on(BATCH, weights=weights)


def test_other_data_may_have_other_weights():
    plain = objective(None)
    assert plain.on(BATCH, weights=lambda x: x).total_weight == 3.0
    assert plain.on(BATCH, weights=lambda x: x).on(BATCH).total_weight == 3.0
    assert plain.on(BATCH, weights=lambda x: x).on(BATCH, weights=None).total_weight == 3


def test_rows_of_factor_zero_are_zero_whatever_they_hold():
    rows = np.array([[np.nan, np.inf], [1.0, 2.0], [-np.inf, 3.0]], np.float32)
    with np.errstate(all="raise"):
        scaled = scale_rows(rows, np.array([0.0, 2.0, 0.0]))
    assert scaled.dtype == np.float32
    assert_array_equal(scaled, [[0, 0], [2, 4], [0, 0]])
