import csv

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ihvp.experiments import damping, lissa_path, scale


@pytest.fixture(scope="module")
def toy():
    return lissa_path.toy()


@pytest.mark.parametrize("setting", [*scale.EXACT, *damping.EXACT])
def test_the_path_that_is_drawn_ends_where_the_solver_does(toy, setting):
    path = lissa_path.follow(toy, *setting)
    assert path.points.shape == (lissa_path.DEPTH + 1, 2)
    assert_allclose(path.points[-1], lissa_path.end(toy, *setting), rtol=1e-8)


def test_the_path_starts_at_the_right_hand_side(toy):
    assert_allclose(lissa_path.follow(toy, 10).points[0], [0.1, 0.1], rtol=1e-15)


def test_the_star_is_the_damped_answer(toy):
    assert_allclose(lissa_path.follow(toy, 10).exact, [1.25, -1 / 12], rtol=1e-12)
    assert_allclose(lissa_path.follow(toy, 10, 1.0).exact, [0.5036, 0.0365], atol=6e-5)


def test_a_scale_that_is_too_small_leaves_the_plane_and_is_refused(toy):
    assert len(lissa_path.follow(toy, 1).points) < 15
    error = lissa_path.divergence(toy, 1)
    assert error.suggested_scale > 8.24 / 2
    assert lissa_path.divergence(toy, error.suggested_scale) is None


@pytest.mark.parametrize("experiment", [scale, damping])
def test_the_printed_numbers_come_out_with_the_step_of_the_notebook(experiment):
    by_differences = lissa_path.toy(step=lissa_path.SEED_STEP)
    assert lissa_path.deviation(by_differences, experiment.PRINTED)[0] < 5e-6


@pytest.mark.parametrize("experiment", [scale, damping])
def test_a_wrong_end_point_does_not_hold(experiment, monkeypatch, tmp_path):
    setting = next(iter(experiment.EXACT))
    monkeypatch.setitem(experiment.EXACT, setting, (1.25, -0.08))
    assert not experiment.run(tmp_path).held


@pytest.mark.parametrize(("experiment", "name"), [(scale, "scale"), (damping, "damping")])
def test_the_table_has_all_points_of_four_paths(experiment, name, tmp_path):
    finding = experiment.run(tmp_path)
    assert finding.held
    assert finding.files == (tmp_path / f"{name}.csv", tmp_path / f"{name}.png")
    with finding.files[0].open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == lissa_path.COLUMNS
    assert len({(row["scale"], row["damping"]) for row in rows}) == 4
    assert np.isfinite([float(row["x1"]) for row in rows]).all()
    assert finding.files[1].read_bytes().startswith(b"\x89PNG")
