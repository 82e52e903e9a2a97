"""What the checks of a loss's premises cost at first use: in gradients, and in a default solve."""

from __future__ import annotations

from functools import partial
from typing import Any

import ihvp
from tests.benchmarks.models import MODELS
from tests.benchmarks.problems import digits, wide
from tests.benchmarks.rows import Case, Row, seconds
from tests.benchmarks.timing import in_turns

_BAR, _PART, _COLUMNS, _DAMPING = 6.0, 0.1, 16, 0.02


def measure(framework: str, device: str) -> list[Row]:
    """All checks on a new objective, whose loss has been compiled before."""
    problem = wide()
    model = MODELS[framework](problem, device)

    def checks() -> Any:
        objective = model.objective()
        objective.require_additive()
        ihvp.Hessian(objective).verify()

    times = in_turns({"checks": checks, "gradient": model.gradient})
    return [
        Row(
            what=f"all checks at first use, {problem.name}, batch {len(problem.y):,}",
            ours=seconds(times["checks"]),
            peer="one gradient",
            beside=seconds(times["gradient"]),
            value=times.ratio("checks", "gradient"),
            high=_BAR,
        ),
        *(_of_a_solve(framework, device, *hidden) for hidden in ((), (32,))),
    ]


def _of_a_solve(framework: str, device: str, *hidden: int) -> Row:
    problem = digits(*hidden)
    model = MODELS[framework](problem, device)
    V = model.native(problem.test_gradients(_COLUMNS))

    def solve(checks: bool) -> Any:
        return ihvp.solve(ihvp.Hessian(model.objective(checks=checks)), V, damping=_DAMPING).x

    times = in_turns({"with": partial(solve, True), "without": partial(solve, False)}, budget=4.0)
    return Row(
        what=f"cost of first-use checks in a default solve, {_COLUMNS} test gradients, digits {problem.name}",
        ours=f"{seconds(times['with'])} with checks",
        peer="without",
        beside=seconds(times["without"]),
        value=times.ratio("with", "without") - 1,
        low=-1.0,
        high=_PART,
    )


CASE = Case(
    "premises",
    "Checks of a loss at first use",
    {framework: partial(measure, framework) for framework in ("torch", "jax", "tf")},
)
