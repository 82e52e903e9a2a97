"""solver="auto": about as cheap as the cheaper method, and what was chosen."""

import numpy as np
import pytest

import ihvp
from ihvp.errors import InvalidOption, SolverError, TooLarge
from ihvp.solvers import auto as module

SPECTRA = {
    "easy": np.linspace(1, 3, 300),
    "hard": np.geomspace(1, 1e-7, 300),
    "clustered": np.r_[np.ones(290), np.linspace(10, 1000, 10)],
    "indefinite": np.r_[-np.ones(5), np.linspace(1, 3, 295)],
    "hard and indefinite": np.r_[-np.geomspace(1, 1e-6, 150), np.geomspace(1, 1e-6, 150)],
}


@pytest.fixture(autouse=True)
def factorisation_is_free(monkeypatch):
    """Costs are counted in products, so that no test depends on the speed of the machine."""
    monkeypatch.setattr(module, "_pace", lambda system, v: (1.0, np.inf))


def refuse(operator):
    raise TooLarge("a matrix", 2, 1, "")


def products(matrix, v, solver):
    """What a solve costs, infinite if it fails."""
    try:
        return ihvp.solve(ihvp.Dense(matrix), v, solver=solver).matvecs
    except SolverError:
        return np.inf


@pytest.mark.parametrize("columns", [1, 4, 160])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_costs_about_as_much_as_the_best_choice_and_twice_as_much_where_indefinite(
    rng, make_symmetric, spectrum, columns
):
    matrix, _ = make_symmetric(rng, SPECTRA[spectrum])
    v = rng.normal(size=(300, columns)) if columns > 1 else rng.normal(size=300)
    solution = ihvp.solve(ihvp.Dense(matrix), v, solver="auto")
    assert solution.converged
    assert np.all(np.linalg.norm(v - matrix @ solution.x, axis=0) <= 1.001e-5 * np.linalg.norm(v, axis=0))
    best = min(
        products(matrix, v, ihvp.CG()),
        products(matrix, v, ihvp.MINRES(rtol=1e-5)),
        products(matrix, v, ihvp.Direct(rtol=1e-5, on_indefinite="solve")),
    )
    allowed = 2.0 if "indefinite" in spectrum else 1.4
    assert solution.matvecs <= allowed * best + 4 * (columns if columns < 100 else 1)


@pytest.mark.parametrize(
    ("spectrum", "method"),
    [("easy", "CG"), ("hard", "Direct"), ("indefinite", "MINRES"), ("hard and indefinite", "Direct")],
)
def test_says_what_it_chose(rng, make_symmetric, spectrum, method):
    matrix, _ = make_symmetric(rng, SPECTRA[spectrum])
    solution = ihvp.solve(ihvp.Dense(matrix), rng.normal(size=300), solver="auto")
    assert solution.method.startswith(f"{method}: ")
    assert ("indefinite" in solution.method) == ("indefinite" in spectrum)


def test_a_block_of_half_as_many_columns_as_parameters_takes_the_matrix_at_once(rng, make_symmetric):
    matrix, _ = make_symmetric(rng, SPECTRA["easy"])
    solution = ihvp.solve(ihvp.Dense(matrix), rng.normal(size=(300, 160)), solver="auto")
    assert solution.matvecs == 300 + 160
    assert solution.method == "Direct: the 300 products that the matrix costs are fewer than CG would take"


def test_a_tiny_matrix_is_formed_at_once(toy_hessian):
    solution = ihvp.solve(ihvp.Dense(toy_hessian), np.ones(2), solver="auto")
    np.testing.assert_allclose(solution.x, [5 / 4, -1 / 12], rtol=1e-12)
    assert solution.method == "Direct: P = 2 is tiny"


def test_a_closed_form_is_taken():
    solution = ihvp.solve(ihvp.LowRank.of([2.0], np.eye(50, 1)), np.ones(50), damping=1.0, solver="auto")
    np.testing.assert_allclose(solution.x, [1 / 3, *np.ones(49)])
    assert solution.method.startswith("ClosedForm: ")


def test_a_matrix_that_does_not_fit_is_not_formed(rng, make_symmetric, monkeypatch):
    monkeypatch.setattr(module, "require_matrix", refuse)
    matrix, _ = make_symmetric(rng, SPECTRA["clustered"])
    solution = ihvp.solve(ihvp.Dense(matrix), rng.normal(size=300), solver="auto")
    assert solution.method == "CG: every direction it met has positive curvature"


def test_the_price_of_the_matrix_is_at_least_its_products(rng, make_symmetric, monkeypatch):
    monkeypatch.undo()
    matrix, _ = make_symmetric(rng, SPECTRA["hard"])
    solution = ihvp.solve(ihvp.Dense(matrix), rng.normal(size=300), solver="auto")
    assert solution.converged
    assert solution.matvecs >= 300


def test_an_inverse_factorises_once(rng, make_symmetric, watched):
    matrix, _ = make_symmetric(rng, SPECTRA["hard"])
    operator = watched(matrix)
    inverse = ihvp.inverse(operator, solver="auto")
    for _ in range(3):
        v = rng.normal(size=300)
        np.testing.assert_allclose(matrix @ (inverse @ v), v, atol=1e-4)
    columns = sum(1 if len(shape) == 1 else shape[1] for shape in operator.shapes)
    assert columns <= 2 * 300 + 20


def test_an_explicit_solver_is_named_too(toy_hessian):
    assert ihvp.solve(ihvp.Dense(toy_hessian), np.ones(2), solver=ihvp.MINRES()).method == "MINRES"


def test_another_word_is_refused(toy_hessian):
    with pytest.raises(InvalidOption, match="auto"):
        ihvp.solve(ihvp.Dense(toy_hessian), np.ones(2), solver="fast")


def test_solves_of_one_inverse_share_their_directions(rng, make_symmetric, monkeypatch):
    monkeypatch.setattr(module, "require_matrix", refuse)
    matrix, _ = make_symmetric(rng, np.geomspace(1, 1e-6, 300))
    inverse = ihvp.inverse(ihvp.Dense(matrix), damping=1e-3, solver="auto")
    taken = []
    for columns in (None, None, 8, 8, 8):
        v = rng.normal(size=300 if columns is None else (300, columns))
        solution = inverse.solve(v)
        residual = v - matrix @ solution.x - 1e-3 * solution.x
        assert np.all(np.linalg.norm(residual, axis=0) <= 1.001e-5 * np.linalg.norm(v, axis=0))
        taken.append(solution.matvecs / (columns or 1))
    assert taken[-1] < 0.2 * taken[0]
    assert "kept for other solves" in solution.method


@pytest.mark.parametrize(("seconds", "work"), [(1.0, 8.0 * 300 * 15 / 0.2), (1e-4, 180_000.0)])
def test_directions_that_cost_more_than_products_are_not_kept(
    rng, make_symmetric, monkeypatch, seconds, work
):
    monkeypatch.setattr(module, "_pace", lambda system, v: (seconds, work / seconds))
    matrix, _ = make_symmetric(rng, SPECTRA["easy"])
    solution = ihvp.solve(ihvp.Dense(matrix), rng.normal(size=(300, 8)), solver="auto")
    assert solution.method.startswith("CG: every direction it met has positive curvature, and the matrix")
