"""``(H + 0.02 I)⁻¹ V`` for the gradients of 16 test digits, to a true residual of 1e-3 in every column.

Each peer has the loosest tolerance, or the fewest iterations, that bring all columns to 1e-3 by the oracle;
we ask for 1e-3. Both sides start from the model: what they set up counts, what they compile does not. As a
limit, the products that our solve makes are made alone, with a matrix that is set up already.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

import ihvp
from tests.benchmarks import peers
from tests.benchmarks.models import MODELS, Model, TorchModel
from tests.benchmarks.problems import Network, digits
from tests.benchmarks.rows import Case, Row, seconds
from tests.benchmarks.timing import in_turns

_DAMPING, _RESIDUAL, _COLUMNS = 0.02, 1e-3, 16
_TOLERANCES = [1.4e-3 * 2 ** (-j / 2) for j in range(12)]
_ITERATIONS = range(10, 200, 5)
# Of torch's peers, which stand beside the default.
_FASTEST = "pyDVL block CG"
_BY_ITERATIONS = ("pyDVL CG", "dattri CG")
_BARS = {"torch": 0.5, "torch-eager": 0.8, "torch-compiled": 0.5, "jax": 0.5}


def measure(framework: str, device: str) -> list[Row]:
    """The rows of both problems."""
    return [row for hidden in ((), (32,)) for row in _on(digits(*hidden), framework, device)]


def _on(problem: Network, framework: str, device: str) -> list[Row]:
    model = MODELS[framework](problem, device)
    if framework == "torch":  # what is loaded once
        other = MODELS["torch-eager"](problem, device)
        ihvp.solve(other.hessian(), other.native(problem.test_gradients(2)), damping=1.0)
    rhs = problem.test_gradients(_COLUMNS)
    V = model.native(rhs)
    solver = ihvp.CG(rtol=_RESIDUAL)
    sides: dict[str, Callable[[], Any]] = {
        "ihvp": lambda: ihvp.solve(model.hessian(), V, damping=_DAMPING, solver=solver).x
    }
    residuals, unbarred = {}, set()
    found = _peers(framework, model, rhs)
    if framework in ("torch-eager", "torch-compiled"):
        found = {_FASTEST: found[_FASTEST]}
    for name, solve in found.items():
        knobs = _ITERATIONS if name in _BY_ITERATIONS else _TOLERANCES
        sides[name], residuals[name] = _loosest(solve, knobs, problem, rhs)
        if name == "scipy CG" or not residuals[name] <= _RESIDUAL:
            unbarred.add(name)
    times = in_turns(sides, budget=5.0, felt=framework == "torch")
    residuals["ihvp"] = problem.residual(_numpy(sides["ihvp"]()), rhs, _DAMPING)
    solution = ihvp.solve(model.hessian(), V, damping=_DAMPING, solver=solver)
    barred = [name for name in sides if name != "ihvp" and name not in unbarred]
    fastest = times.fastest(*barred)
    what = f"16 test gradients to 1e-3, digits {problem.name} (P = {problem.size:,})"
    ours = f"{seconds(times['ihvp'])}, {solution.matvecs} products"
    H = model.hessian()
    alone = in_turns({"": lambda: [H @ V for _ in range(solution.matvecs // _COLUMNS)]}, budget=1.0)[""]
    limit = Row(
        what=what,
        ours=ours,
        peer="limit, its products alone",
        beside=seconds(alone),
        value=times["ihvp"] / alone,
        residual=residuals["ihvp"],
    )
    return [
        Row(
            what=what,
            ours=ours,
            peer=name,
            beside=seconds(times[name]) + ("" if residuals[name] <= _RESIDUAL else ", not to 1e-3"),
            value=times.ratio("ihvp", name),
            rival=True,
            high=_BARS.get(framework) if name == fastest else None,
            residual=residuals["ihvp"],
            peer_residual=residuals[name],
        )
        for name in sides
        if name != "ihvp"
    ] + [limit]


def _peers(framework: str, model: Model, rhs: Any) -> dict[str, peers.Solve]:
    if isinstance(model, TorchModel):
        scipy = peers.scipy_solve(model, rhs, _DAMPING)
        return {**peers.torch_solves(model, rhs, _DAMPING), "scipy CG": scipy}
    if framework == "jax":
        return peers.jax_solves(model, rhs, _DAMPING)
    return peers.tf_solves(model, rhs, _DAMPING)


def _loosest(
    solve: peers.Solve, knobs: Sequence[float], problem: Network, rhs: Any
) -> tuple[Callable[[], Any], float]:
    """The first solve that reaches the residual, and the residual; the last one if none does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for knob in knobs:
            call = solve(knob)
            residual = problem.residual(_numpy(call()), rhs, _DAMPING)
            if residual <= _RESIDUAL:
                break
    return call, residual


def _numpy(x: Any) -> np.ndarray:
    return x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)


CASE = Case(
    "solves",
    "Solves for 16 right-hand sides",
    {framework: partial(measure, framework) for framework in (*_BARS, "tf")},
)
