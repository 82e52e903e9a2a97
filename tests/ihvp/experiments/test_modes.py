import csv

import numpy as np
import pytest

from ihvp.experiments import modes
from ihvp.experiments.cost import rise


def test_numdiff_alone_is_timed_measured_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(modes, "_EXAMPLES", 600)
    monkeypatch.setattr(modes, "_BUDGET", 0.0)
    finding = modes.run(tmp_path, "numdiff")
    with (tmp_path / "modes.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert tuple(row) == modes.COLUMNS
    assert (row["backend"], row["way"]) == ("numdiff", "finite differences")
    assert float(row["seconds"]) > 0
    assert 1e-6 < float(row["relative_error"]) < 3e-3
    assert finding.files == (tmp_path / "modes.csv", tmp_path / "modes.png")


def test_the_peak_is_that_of_what_was_held_at_once():
    size = 64 * 2**20

    def call():
        for _ in range(3):  # one after the other, so that their memory never adds up
            np.ones(size, dtype=np.uint8)

    assert rise(call) == pytest.approx(size, rel=0.2)
