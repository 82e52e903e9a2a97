import csv

import numpy as np
import pytest

pytest.importorskip("sklearn")

from ihvp.experiments import loo


@pytest.fixture(scope="module")
def model():
    return loo.Model()


def test_the_model_without_a_digit_is_an_optimum_elsewhere(model):
    masses = np.ones(1500)
    masses[7] = 0
    weights = model.without(np.array([7]))
    assert np.linalg.norm(model.gradient(weights, masses)) < 1e-10
    assert np.linalg.norm(weights - model.weights) > 1e-6


def test_the_question_is_a_digit_that_is_misread(model):
    image, label = model.test.images[model.question], model.test.labels[model.question]
    assert (image @ model.weights).argmax() != label


def test_the_removals_are_always_the_same_and_none_twice(model):
    removed = model.removals(500)
    assert len(set(removed.tolist())) == 500
    assert model.removals(500).tolist() == removed.tolist()


def test_a_few_removals_are_predicted_tabulated_and_drawn(tmp_path, monkeypatch, model):
    monkeypatch.setattr(loo, "REMOVALS", 8)
    monkeypatch.setattr(loo, "Model", lambda: model)
    finding = loo.run(tmp_path)
    assert finding.held
    assert "Over 8 removals" in finding.found
    with (tmp_path / "loo.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == loo.COLUMNS
    assert [int(row["removed"]) for row in rows] == model.removals(8).tolist()
    first, second, actual = np.array([[float(row[name]) for name in loo.COLUMNS[1:]] for row in rows]).T
    assert np.abs(second - actual).max() < np.abs(first - actual).max() < 0.1 * np.abs(actual).max()
    assert (tmp_path / "loo.png").read_bytes().startswith(b"\x89PNG")
