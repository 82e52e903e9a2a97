"""An interruption between solves costs the one that it fell into, and no bit of the result."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ihvp.influence import points
from ihvp.processes import Processes


@pytest.fixture
def narrow(monkeypatch):
    """Two test points in a solve; all five of them and all training examples in one tile."""
    monkeypatch.setattr(points, "_COLUMNS", 2)


@pytest.mark.parametrize("name", ["scores", "scores.zarr"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_what_was_solved_before_an_interruption_is_not_solved_again(
    small, tmp_path, monkeypatch, narrow, name, number
):
    undisturbed = small.influence().scores(small.test, out=tmp_path / "undisturbed" / name)
    influence, widths = small.influence(), []
    solve = influence.inverse.solve

    def stop_once(v, **options):
        widths.append(v.shape[1])
        if len(widths) == number:
            raise KeyboardInterrupt
        return solve(v, **options)

    monkeypatch.setattr(influence.inverse, "solve", stop_once)
    with pytest.raises(KeyboardInterrupt):
        influence.scores(small.test, out=tmp_path / name)
    found = influence.scores(small.test, out=tmp_path / name)
    repeated = [2, 2, 1][number - 1]
    assert (len(widths), sum(widths)) == (3 + 1, 5 + repeated)
    assert_array_equal(found, undisturbed, strict=True)
    assert np.asarray(found).tobytes() == np.asarray(undisturbed).tobytes()
    assert found.residual == undisturbed.residual


def test_each_solve_is_reported_and_what_an_earlier_run_has_kept(small, tmp_path, monkeypatch, narrow):
    reported = []

    @contextmanager
    def track(processes, description, total, progress):
        yield lambda amount: reported.append((description, amount, total))

    monkeypatch.setattr(Processes, "track", track)
    small.influence().inverse_products(small.test)
    assert reported == [("Inverse products", amount, 5) for amount in (2, 2, 1)]
    for _ in range(2):
        reported.clear()
        small.influence().scores(small.test, out=tmp_path)
        tiles = [entry[1:] for entry in reported if entry[0] == "Influence"]
        assert sum(amount for amount, _ in tiles) == tiles[0][1]
