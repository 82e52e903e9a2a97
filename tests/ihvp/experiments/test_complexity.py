import csv

import numpy as np
import pytest

from ihvp import experiments
from ihvp.errors import BackendNotInstalled, UnknownBackend
from ihvp.experiments import choice, complexity


def test_a_power_law_has_its_exponent():
    p = np.geomspace(1, 1e7, 25)
    assert complexity.exponent(p, 3e-9 * p**1.25) == pytest.approx(1.25, abs=1e-12)


def test_the_cost_of_a_call_does_not_bend_the_exponent():
    p = np.geomspace(1, 1e7, 25)
    seconds = np.where(p < complexity.FITTED_FROM, 1e-4, 1e-9 * p)
    assert complexity.exponent(p, seconds) == pytest.approx(1, abs=1e-12)


def test_the_long_form_has_the_grid_of_the_notebook():
    sizes = complexity.sizes(full=True)
    assert len(sizes) == 199
    assert sizes[0] == 1
    assert sizes[1] == round(1e7 / 199 + 1)
    assert sizes[-1] == round(198 * 1e7 / 199 + 1)


def test_the_short_form_spans_the_same_range():
    sizes = complexity.sizes()
    assert (len(sizes), sizes[0], sizes[-1]) == (25, 1, 10**7)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(complexity, "sizes", lambda *, full=False: [10, 100_000, 1_000_000])


def test_every_size_has_a_row(few, tmp_path):
    finding = complexity.run(tmp_path, "numdiff")
    with (tmp_path / "complexity.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["backend"], int(row["p"])) for row in rows] == [
        ("numdiff", 10),
        ("numdiff", 100_000),
        ("numdiff", 1_000_000),
    ]
    assert all(float(row["product_seconds"]) > 0 and float(row["gradient_seconds"]) > 0 for row in rows)
    assert finding.files == (tmp_path / "complexity.csv", tmp_path / "complexity.png")
    assert (tmp_path / "complexity.png").read_bytes().startswith(b"\x89PNG")


def test_the_long_form_measures_every_size_on_every_backend_and_says_how_far_it_is(
    tmp_path, monkeypatch, capsys
):
    measured = []

    def times(plugin, p, budget):
        measured.append((plugin.name, p, budget))
        return 1e-9 * p, 5e-10 * p

    monkeypatch.setattr(complexity, "_times", times)
    monkeypatch.setattr("ihvp._registry._installed", lambda plugin: plugin.name in ("numdiff", "torch"))
    assert complexity.run(tmp_path, full=True).held
    grid = complexity.sizes(full=True)
    assert [each[:2] for each in measured] == [(name, p) for name in ("numdiff", "torch") for p in grid]
    # A minute for a backend, but for what takes longer than its part even so.
    assert sum(budget for *_, budget in measured) == pytest.approx(2 * 60)
    shown = capsys.readouterr().err
    assert "complexity, numdiff" in shown
    assert "complexity, torch" in shown
    assert "/199" in shown


def test_the_long_form_runs_end_to_end_on_a_short_grid(few, tmp_path):
    assert experiments.run("complexity", tmp_path, "numdiff", full=True).files[1].stat().st_size > 10_000


@pytest.mark.parametrize(("exponent", "held"), [(1.0, True), (1.4, True), (2.0, False)])
def test_the_claim_holds_for_what_is_nearer_to_linear_than_to_square(
    few, tmp_path, monkeypatch, exponent, held
):
    monkeypatch.setattr(complexity, "_times", lambda plugin, p, budget: (1e-9 * p**exponent, 5e-10 * p))
    finding = complexity.run(tmp_path, "numdiff")
    assert finding.held is held
    assert f"p^{exponent:.2f}" in finding.found


def test_an_unknown_backend_is_refused():
    with pytest.raises(UnknownBackend):
        choice.plugins("caffe")


def test_a_backend_without_its_framework_is_refused(monkeypatch):
    monkeypatch.setattr("ihvp._registry._installed", lambda plugin: False)
    with pytest.raises(BackendNotInstalled):
        choice.plugins("torch")


def test_without_a_choice_all_that_are_installed_take_part(monkeypatch):
    monkeypatch.setattr("ihvp._registry._installed", lambda plugin: plugin.name in ("numdiff", "torch"))
    assert [plugin.name for plugin in choice.plugins(None)] == ["numdiff", "torch"]
