"""What a CUDA device answers beside the processor, in float64, and the memory that a large solve takes there.

``python -m tests.device.answers FRAMEWORK`` prints a line for each; with ``cpu`` behind it, the processor
takes the device's place, for a look at the script itself.
"""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ihvp
from ihvp.algebra import to_numpy
from tests.benchmarks.memory import QUADRATICS
from tests.benchmarks.models import MODELS, Model
from tests.benchmarks.problems import Network, digits

_DAMPING, _RTOL = 0.02, 1e-10
_BOUND = 1e-7  # solves to 1e-10 differ by about that times the condition
_LARGE = 50_000_000


def main(framework: str, device: str = "cuda") -> int:
    """1 where one of the answers differs or fails."""
    warnings.simplefilter("ignore")
    if framework == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    problem = _doubled(digits(16))
    here, there = (_questions(problem, MODELS[framework](problem, place)) for place in ("cpu", device))
    failed = 0
    for name, ask in there.items():
        try:
            expected, found = here[name](), ask()
        except Exception as error:
            failed, verdict = 1, f"FAILED with {type(error).__name__}: {error}"
        else:
            scale = float(np.max(np.abs(expected), initial=1e-300))
            distance = float(np.max(np.abs(found - expected))) / scale
            verdict = f"{distance:.1e}"
            if not distance <= _BOUND:
                failed, verdict = 1, f"WRONG by {verdict}"
        print(f"{name}: {verdict}", flush=True)
    if device != "cpu":
        print(_peak(framework), flush=True)
    return failed


def _questions(problem: Network, model: Model) -> dict[str, Callable[[], NDArray[Any]]]:
    """All that is asked about a model, by name."""
    v, V = (model.native(problem.directions(*columns).astype(np.float64)) for columns in ((), (5,)))
    objective, predicting = model.objective(), model.predicting()
    H, GN = ihvp.Hessian(objective), ihvp.GaussNewton(predicting)
    test = problem.test_x[:4], problem.test_y[:4].astype(np.int32 if "Jax" in type(model).__name__ else int)

    def solve(operator: ihvp.LinearOperator, solver: ihvp.Solver, rhs: Any = V) -> Callable[[], Any]:
        return lambda: ihvp.solve(operator, rhs, damping=_DAMPING, solver=solver).x

    def influence(**options: Any) -> ihvp.Influence:
        return ihvp.Influence(predicting, _DAMPING, **options)

    exact = ihvp.CG(rtol=_RTOL)
    questions: dict[str, Callable[[], Any]] = {
        "value": objective.value,
        "gradient": objective.gradient,
        "H v": lambda: H @ v,
        "H V": lambda: H @ V,
        "Gauss–Newton V": lambda: GN @ V,
        "OPG V": lambda: ihvp.OPG(objective) @ V,
        "rows": lambda: objective.per_example_gradients()[:20],
        "CG": solve(GN, exact, v),
        "block CG": solve(GN, exact),
        "MINRES": solve(H, ihvp.MINRES(rtol=_RTOL), v),
        "Direct": solve(GN, ihvp.Direct()),
        "Nyström": solve(GN, ihvp.CG(rtol=_RTOL, preconditioner="nystrom"), v),
        "auto": solve(GN, ihvp.Auto(rtol=_RTOL)),
        "eigenvalues": lambda: ihvp.eigsh(GN, k=5, tol=1e-9).values,
        "trace": lambda: ihvp.trace(GN, num_samples=12).value,
        "scores": lambda: influence(curvature=GN, solver=exact).scores(test).values,
        "top_k": lambda: influence(curvature=GN, solver=exact).top_k(test, 5).indices,
        "self-influence": lambda: influence(curvature=GN, solver=ihvp.Direct()).self_influence().values,
        "group": lambda: influence(curvature=GN, solver=exact).group([3, 14, 150], test).values,
        "K-FAC scores": lambda: influence(curvature=ihvp.KFAC(predicting)).scores(test).values,
        "EK-FAC scores": lambda: influence(curvature=ihvp.EKFAC(predicting)).scores(test).values,
        "on inputs": lambda: influence(curvature=GN, solver=exact).on_inputs(
            test, tuple(array[:3] for array in (problem.x, problem.y))
        )[0],
    }
    return {name: lambda ask=ask: np.asarray(to_numpy(ask()), np.float64) for name, ask in questions.items()}


def _doubled(problem: Network) -> Network:
    """The problem in float64."""
    weights = [array.astype(np.float64) for array in problem.weights]
    return dataclasses.replace(
        problem, weights=weights, x=problem.x.astype(np.float64), test_x=problem.test_x.astype(np.float64)
    )


def _peak(framework: str) -> str:
    """The peak of CG beyond the parameters, in vectors of P numbers."""
    if framework == "torch":
        import torch

        with torch.device("cuda"):
            objective, right = QUADRATICS[framework](_LARGE)
            before = torch.cuda.memory_allocated()
            solution = ihvp.solve(ihvp.Hessian(objective), right(), solver=ihvp.CG(rtol=1e-4))
        peak = torch.cuda.max_memory_allocated() - before
    else:
        import jax

        objective, right = QUADRATICS[framework](_LARGE)
        before = jax.devices()[0].memory_stats()["bytes_in_use"]
        solution = ihvp.solve(ihvp.Hessian(objective), right(), solver=ihvp.CG(rtol=1e-4))
        peak = jax.devices()[0].memory_stats()["peak_bytes_in_use"] - before
    vectors = peak / solution.x.nbytes
    return f"peak of CG beyond the parameters, P = {_LARGE:.0e}: {vectors:.1f} vectors of P numbers"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
