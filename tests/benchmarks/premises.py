"""What the checks of a loss's premises cost at first use, in gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

import ihvp
from tests.benchmarks.models import MODELS
from tests.benchmarks.problems import wide
from tests.benchmarks.rows import Case, Row, seconds
from tests.benchmarks.timing import in_turns

_BAR = 6.0


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
        )
    ]


CASE = Case("premises", {framework: partial(measure, framework) for framework in ("torch", "jax", "tf")})
