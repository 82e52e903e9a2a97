"""A thousand random systems: whatever is said to be solved is, and whatever fails says why."""

from __future__ import annotations

import numpy as np
import pytest

import ihvp
from ihvp.errors import IndefiniteCurvature, SolverError
from ihvp.solvers.cg import CG
from ihvp.solvers.direct import Direct
from ihvp.solvers.minres import MINRES

KINDS = ("definite", "semi-definite", "indefinite", "zero")
RIGHT_HAND_SIDES = ("vector", "block", "wide", "repeated", "zero", "with a zero", "in the range")
SYSTEMS = 500
SOLVERS = {
    "CG": CG(rtol=1e-6),
    "CG truncate": CG(rtol=1e-6, on_indefinite="truncate"),
    "CG minres": CG(rtol=1e-6, on_indefinite="minres"),
    "MINRES": MINRES(rtol=1e-6),
    "Direct": Direct(rtol=1e-6),
    "Direct solve": Direct(rtol=1e-6, on_indefinite="solve"),
}


class System:
    """A symmetric matrix with its eigenvalues, and right-hand sides."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.kind = KINDS[seed % len(KINDS)]
        self.sides = RIGHT_HAND_SIDES[seed % len(RIGHT_HAND_SIDES)]
        size = int(rng.choice([1, 2, 3, 5, 8, 13, 30]))
        condition = 10 ** rng.uniform(0, 14)
        values = np.geomspace(1, 1 / condition, size) if size > 1 else np.ones(1)
        if self.kind == "semi-definite":
            values[: rng.integers(1, size + 1)] = 0.0
        elif self.kind == "indefinite":
            values *= rng.choice([-1.0, 1.0], size)
            values[0] = -values[0] if size > 1 and np.all(values > 0) else values[0]
        elif self.kind == "zero":
            values[:] = 0.0
        values *= 10 ** rng.uniform(-3, 3)
        basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
        matrix = (basis * values) @ basis.T
        self.matrix, self.values = (matrix + matrix.T) / 2, values
        columns = {"vector": 1, "wide": size + 3, "zero": 2}.get(self.sides, 3)
        v = rng.normal(size=(size, columns)) * 10.0 ** rng.integers(-3, 3, columns)
        if self.sides == "vector":
            v = v[:, 0]
        elif self.sides == "repeated":
            v[:, 2] = v[:, 0]
        elif self.sides == "zero":
            v[:] = 0.0
        elif self.sides == "with a zero":
            v[:, 1] = 0.0
        elif self.sides == "in the range":
            v = self.matrix @ v
        self.v = v

    def residual(self, x):
        """``‖v − A x‖ − rtol ‖v‖`` of each column in extended precision, less what rounding of A x allows."""
        wide = np.longdouble
        rest = self.v.astype(wide) - self.matrix.astype(wide) @ x.astype(wide)
        rounding = 4 * np.finfo(float).eps * len(self.values) * np.abs(self.values).max()
        return (
            np.linalg.norm(rest, axis=0)
            - 1e-6 * np.linalg.norm(self.v, axis=0)
            - rounding * np.linalg.norm(x, axis=0)
        )


def outcome(system, solver):
    """The solution, and the error that carried it if there was one."""
    try:
        return ihvp.solve(ihvp.Dense(system.matrix), system.v, solver=solver), None
    except SolverError as error:
        return error.solution, error


@pytest.fixture(scope="module")
def systems():
    return [System(seed) for seed in range(SYSTEMS)]


@pytest.fixture(scope="module", params=SOLVERS)
def outcomes(request, systems):
    """The solver's name, and its solution and error for each system."""
    return request.param, [outcome(system, SOLVERS[request.param]) for system in systems]


def test_no_answer_outside_its_tolerance_is_said_to_be_converged(systems, outcomes):
    solved = [
        (system, solution)
        for system, (solution, _) in zip(systems, outcomes[1], strict=True)
        if solution.converged
    ]
    for system, solution in solved:
        assert np.all(system.residual(solution.x) <= 0), (system.kind, system.sides)
    # A seventh of the right-hand sides are zero; the well-conditioned among the others come on top, at least.
    assert len(solved) > 0.35 * SYSTEMS


def test_every_failure_is_a_named_error_with_finite_numbers(outcomes):
    name, pairs = outcomes
    for solution, error in pairs:
        assert np.all(np.isfinite(solution.x))
        assert np.all(np.isfinite(solution.residual))
        # Truncation is asked for; everything else that is not solved is an error.
        refused = name == "CG truncate" and solution.stop_reason == "indefinite"
        assert solution.converged == (error is None and not refused)


def test_well_conditioned_systems_are_all_solved(systems, outcomes):
    name, pairs = outcomes
    kinds = ("definite", "indefinite") if name in ("CG minres", "MINRES", "Direct solve") else ("definite",)
    for seed, (system, (_, error)) in enumerate(zip(systems, pairs, strict=True)):
        sizes = np.abs(system.values)
        if system.kind in kinds and sizes.min() > 1e-7 * sizes.max():
            assert error is None, (seed, error)


def test_negative_eigenvalues_are_refused_by_direct(systems, outcomes):
    name, pairs = outcomes
    if name != "Direct":
        return
    for system, (_, error) in zip(systems, pairs, strict=True):
        if system.values.min() < -1e-12 * np.abs(system.values).max():
            assert isinstance(error, IndefiniteCurvature)
            assert error.curvature == pytest.approx(system.values.min(), rel=1e-3)
            assert error.suggested_damping > -system.values.min()
