"""A solve that would never end says so early, with a forecast; one that ends does not."""

from __future__ import annotations

import numpy as np
import pytest

import ihvp
from ihvp.errors import NotConverged, Unaffordable
from ihvp.operators.base import LinearOperator
from ihvp.solvers import forecast
from ihvp.solvers.forecast import damping_for, iterations_of_cg
from ihvp.solvers.ritz import RitzRange
from ihvp.space import VectorSpace

P = 20_000
SPECTRA = {
    "uniform": np.linspace(1e-4, 1, P),
    "geometric": np.geomspace(1e-5, 1, P),
    "harmonic": 1 / np.arange(1, P + 1),
    "small tail": np.r_[np.geomspace(1e-1, 1, 200), np.linspace(1e-6, 1e-4, P - 200)],
    "quadratic": 1 / np.arange(1, P + 1.0) ** 2 + 1e-5,
}


class Diagonal(LinearOperator):
    def __init__(self, diagonal):
        super().__init__(VectorSpace.of(diagonal))
        self.diagonal = diagonal

    def apply(self, v):
        return self.diagonal * v if v.ndim == 1 else self.diagonal[:, None] * v


@pytest.fixture(autouse=True)
def time_that_does_not_count():
    """Here it counts."""


@pytest.fixture
def no_budget(monkeypatch):
    """Every solve is forecast after 100 iterations, and none is worth waiting for."""
    monkeypatch.setattr(forecast, "_SECONDS", 0.0)
    monkeypatch.setattr(forecast, "_ITERATIONS", 1)
    monkeypatch.setattr(forecast, "_LOOKS", {100: 0.0})


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("solver", [ihvp.CG, ihvp.MINRES])
def test_forecast_after_100_products_is_within_a_factor_of_three(no_budget, name, solver):
    A, v = Diagonal(SPECTRA[name]), np.random.default_rng(0).standard_normal(P)
    taken = ihvp.solve(A, v, solver=solver(max_iterations=10_000)).iterations
    with pytest.raises(Unaffordable) as caught:
        ihvp.solve(A, v, solver=solver())
    assert taken / 3 <= caught.value.products <= 3 * taken
    assert caught.value.solution.iterations == 100
    assert caught.value.solution.stop_reason == "unaffordable"
    assert caught.value.solution.residual <= 1


def test_advised_damping_leads_to_an_affordable_solve(no_budget):
    A, v = Diagonal(SPECTRA["geometric"]), np.random.default_rng(0).standard_normal(P)
    with pytest.raises(NotConverged, match=r"at this pace the tolerance 1\.0e-05 takes about") as caught:
        ihvp.solve(A, v)
    damping = caught.value.suggested_damping
    solution = ihvp.solve(A, v, damping, solver=ihvp.CG(max_iterations=400))
    assert solution.converged
    assert solution.iterations >= 100 / 3


def test_several_dampings_stop_one_by_one(no_budget):
    A, v = Diagonal(SPECTRA["geometric"]), np.random.default_rng(0).standard_normal(P)
    easy, hard = ihvp.solve(A, v, [0.1, 0.0], on_failure="return")
    assert (easy.converged, hard.converged) == (True, False)
    assert hard.stop_reason == "unaffordable"


def test_blocks_and_what_takes_over_from_indefinite_curvature_are_stopped_too(no_budget):
    values = SPECTRA["geometric"].copy()
    v = np.random.default_rng(0).standard_normal((P, 3))
    with pytest.raises(Unaffordable) as caught:
        ihvp.solve(Diagonal(values), v)
    assert caught.value.solution.iterations == 100
    values[0] = -0.5
    with pytest.raises(Unaffordable) as caught:
        ihvp.solve(Diagonal(values), v[:, 0], solver=ihvp.CG(on_indefinite="minres"))
    assert caught.value.solution.iterations <= 200


def test_an_explicit_limit_is_obeyed_as_it_is(no_budget):
    A, v = Diagonal(SPECTRA["geometric"]), np.random.default_rng(0).standard_normal(P)
    for solver in (ihvp.CG(max_iterations=250), ihvp.MINRES(max_iterations=250)):
        solution = ihvp.solve(A, v, solver=solver, on_failure="return")
        assert (solution.iterations, solution.stop_reason) == (250, "max_iterations")


def test_small_problems_are_never_stopped():
    values = np.geomspace(1e-9, 1, 400)
    solution = ihvp.solve(Diagonal(values), np.ones(400), solver=ihvp.CG(rtol=1e-8), on_failure="return")
    assert solution.stop_reason != "unaffordable"


def test_damping_is_that_of_the_iterations_asked_for():
    ritz = RitzRange(1e-6, 0.0, 2.0, 0.0)
    added = damping_for(ritz, 1e-5, 300)
    assert iterations_of_cg(ritz, 1e-5, added) == pytest.approx(300, rel=0.5)
    assert iterations_of_cg(RitzRange(-1.0, 0.0, 2.0, 0.0), 1e-5) == np.inf
