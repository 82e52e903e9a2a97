import csv

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ihvp.experiments import step


@pytest.fixture
def problems():
    return step.problems()


def test_the_exact_products_are_those_of_the_notebooks(problems):
    assert_allclose(problems["chain"].exact, [1, 1], rtol=1e-15)
    assert_allclose(problems["toy"].exact, [20 / 9, 28 / 3], rtol=1e-15)


def test_the_chain_has_the_printed_error_in_float32(problems):
    product, taken = problems["chain"].product("float32", 2, 1e-2)
    assert product.dtype == np.float32
    assert_allclose(product, [0.99999905, 0.99999905], rtol=0, atol=1e-8)
    assert taken == 1e-2


def test_the_toy_has_the_printed_truncation_error(problems):
    product, _ = problems["toy"].product("float64", 2, 1e-2)
    assert_allclose(product, [2.22302079, 9.33413506], rtol=0, atol=2e-6)
    # The cubic gradient's third derivative along v = (1, 1) is 48 in both places.
    assert_allclose(product - problems["toy"].exact, [8e-4, 8e-4], rtol=1e-8)


def test_order_4_has_no_truncation_error_on_a_cubic_gradient(problems):
    product, _ = problems["toy"].product("float64", 4, 0.5)
    assert_allclose(product, problems["toy"].exact, rtol=1e-13)


@pytest.mark.parametrize(("order", "gain"), [(2, 4.0), (4, 16.0)])
def test_halving_a_long_step_takes_away_the_truncation_of_its_order(problems, order, gain):
    network = problems["network"]
    long, short = (network.product("float64", order, r)[0] - network.exact for r in (2e-2, 1e-2))
    assert np.linalg.norm(long) / np.linalg.norm(short) == pytest.approx(gain, rel=0.02)


@pytest.mark.parametrize("order", [2, 4])
def test_halving_a_short_step_doubles_the_rounding(problems, order):
    network = problems["network"]
    steps = np.geomspace(1e-11, 1e-8, 25)
    errors = [np.linalg.norm(network.product("float64", order, r)[0] - network.exact) for r in steps]
    assert np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(-1, abs=0.1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", [2, 4])
def test_the_chosen_step_is_the_one_that_is_taken(problems, dtype, order):
    network = problems["network"]
    chosen, taken = network.product(dtype, order, None)
    again, _ = network.product(dtype, order, taken)
    allowed = 1e-3 if dtype == "float32" else 1e-8
    assert np.linalg.norm(chosen - again) <= allowed * np.linalg.norm(chosen)
    assert 1e-8 < taken < 1e-2


def test_the_table_has_every_problem_dtype_order_and_step(tmp_path, monkeypatch):
    monkeypatch.setattr(step, "_STEPS", np.array([1e-4, 1e-2]))
    finding = step.run(tmp_path)
    with (tmp_path / "step.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == step.COLUMNS
    assert len(rows) == 3 * 2 * 2 * 3
    assert sum(row["chosen"] == "True" for row in rows) == 12
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
    assert finding.held
