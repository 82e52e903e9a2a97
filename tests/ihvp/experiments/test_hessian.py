import csv

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ihvp.experiments import hessian
from ihvp.experiments.hessian import Spectrum


@pytest.fixture
def spectrum(rng):
    basis, _ = np.linalg.qr(rng.standard_normal((4, 4)))
    return Spectrum(basis @ np.diag([3.0, 2.0, 1.0, -1.0]) @ basis.T)


def test_the_low_rank_error_is_that_of_the_eigenvalues_left_out(spectrum):
    size = np.sqrt(9 + 4 + 1 + 1)
    assert_allclose(
        [spectrum.errors(k)[0] * size for k in (1, 2, 3)], [np.sqrt(6), np.sqrt(2), 1.0], rtol=1e-12
    )
    assert spectrum.errors(4)[0] < 1e-14


def test_the_full_rank_error_is_that_of_the_last_eigenvalue_in_place_of_them(spectrum):
    size = np.sqrt(15)
    assert spectrum.errors(2)[1] * size == pytest.approx(np.hypot(2 - 1, 2 + 1), rel=1e-12)


def test_an_eigenvalue_below_zero_stands_for_no_others(spectrum):
    assert np.isnan(spectrum.errors(4)[1])


@pytest.mark.parametrize(("smallest", "refused"), [(1e-10, True), (1e-6, False)])
def test_an_eigenvalue_that_is_zero_but_for_noise_stands_for_no_others(smallest, refused):
    assert np.isnan(Spectrum(np.diag([3.0, smallest])).errors(2)[1]) == refused


@pytest.fixture(scope="module")
def finding(tmp_path_factory):
    return hessian.run(tmp_path_factory.mktemp("hessian"))


def test_the_claim_holds_by_finite_differences(finding):
    assert finding.held


def test_each_matrix_has_a_row_for_every_number_of_eigenpairs(finding):
    with finding.files[0].open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == hessian.COLUMNS
    assert len(rows) == 2 * 3 * 66
    assert finding.files[1].read_bytes().startswith(b"\x89PNG")


def test_the_full_rank_form_of_h_ends_with_its_thirty_positive_eigenvalues(finding):
    with finding.files[0].open() as file:
        rows = [row for row in csv.DictReader(file) if (row["matrix"], row["examples"]) == ("H", "all 1,000")]
    assert [int(row["k"]) for row in rows if np.isfinite(float(row["full_rank_error"]))] == list(range(1, 31))


def test_one_example_has_an_outer_product_of_rank_one(finding):
    with finding.files[0].open() as file:
        rows = csv.DictReader(file)
        first = next(row for row in rows if (row["matrix"], row["examples"]) == ("G", "one example"))
    assert (first["k"], float(first["low_rank_error"]) < 1e-12) == ("1", True)


def test_a_matrix_unlike_the_one_by_hand_does_not_hold(monkeypatch, tmp_path):
    monkeypatch.setattr(hessian.SeedNetwork, "opg", lambda self, rows: np.eye(66))
    assert not hessian.run(tmp_path).held
