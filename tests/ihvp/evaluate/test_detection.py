"""The area under the curve, against the definition, and DeLong's error against repeated draws."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ihvp.errors import InvalidOption
from ihvp.evaluate import detection


def drawn(rng, count=60, shift=1.0):
    wrong = np.arange(count) < count // 4
    return rng.normal(size=count) + shift * wrong, wrong


def test_the_area_is_the_fraction_of_pairs_in_order_ties_by_half():
    scores, wrong = drawn(np.random.default_rng(0))
    scores = scores.round(1)
    pairs = np.sign(scores[wrong][:, None] - scores[~wrong])
    assert (pairs == 0).any()
    assert_allclose(detection(scores, wrong).value, (1 + pairs.mean()) / 2, rtol=1e-12)


def test_the_standard_error_is_delongs_by_its_definition():
    scores, wrong = drawn(np.random.default_rng(1))
    above = (1 + np.sign(scores[wrong][:, None] - scores[~wrong])) / 2
    rows, columns = above.mean(axis=1), above.mean(axis=0)
    expected = np.sqrt(rows.var(ddof=1) / len(rows) + columns.var(ddof=1) / len(columns))
    assert_allclose(detection(scores, wrong).standard_error, expected, rtol=1e-12)


def test_the_standard_error_is_the_spread_of_repeated_draws():
    rng = np.random.default_rng(2)
    found = [detection(*drawn(rng)) for _ in range(300)]
    spread = np.std([each.value for each in found], ddof=1)
    assert_allclose(np.mean([each.standard_error for each in found]), spread, rtol=0.12)


def test_the_curve_comes_along():
    pytest.importorskip("pandas")
    found = detection([0.9, 0.1, 0.5, 0.2], [True, False, False, True])
    assert found.to_pandas()["found"].tolist() == [0.0, 0.5, 0.5, 1.0, 1.0]
    ax = found.plot()
    assert str(found) in [text.get_text() for text in ax.get_legend().get_texts()]
    ax.figure.clear()


def test_one_mislabelled_example_has_no_standard_error():
    found = detection([3.0, 1.0, 2.0], [True, False, False])
    assert found.value == 1
    assert np.isnan(found.standard_error)


@pytest.mark.parametrize(
    ("scores", "mislabelled"),
    [
        ([1.0, 2.0], [True, True]),
        ([1.0, 2.0], [False, False]),
        ([1.0, 2.0], [True]),
        ([1.0, np.nan], [True, False]),
        ([1.0, 2.0], [1, 0]),
    ],
)
def test_what_has_no_area_is_refused(scores, mislabelled):
    with pytest.raises(InvalidOption):
        detection(scores, mislabelled)
