"""Products with 16 vectors at once: the time of each, beside one gradient of the same framework."""

from __future__ import annotations

from functools import partial

import numpy as np

from tests.benchmarks.models import MODELS, TorchModel
from tests.benchmarks.peers import curvlinops_hessian
from tests.benchmarks.problems import wide
from tests.benchmarks.rows import Case, Row, seconds
from tests.benchmarks.timing import in_turns

_COLUMNS = 16
_BARS = {"torch": 1.6, "jax": 1.5, "tf": 1.9}


def measure(framework: str, device: str) -> list[Row]:
    """The product with a block, in gradients a vector."""
    problem = wide()
    model = MODELS[framework](problem, device)
    H, directions = model.hessian(), problem.directions(_COLUMNS)
    V = model.native(directions)
    sides = {"block": lambda: H @ V, "gradient": model.gradient}
    if isinstance(model, TorchModel):
        other = curvlinops_hessian(model)
        sides["curvlinops"] = lambda: other @ V
    times = in_turns(sides, budget=4.0)
    exact = problem.hessian_product(directions[:, 0])
    computed = np.asarray(H @ directions, dtype=np.float64)[:, 0]
    error = float(np.linalg.norm(computed - exact) / np.linalg.norm(exact))
    what, each = f"block of {_COLUMNS}, per vector, {problem.name}", seconds(times["block"] / _COLUMNS)
    rows = [
        Row(
            what=what,
            ours=each,
            peer="one gradient",
            beside=seconds(times["gradient"]),
            value=times.ratio("block", "gradient") / _COLUMNS,
            high=_BARS[framework],
            residual=error,
        )
    ]
    if "curvlinops" in sides:
        rows.append(
            Row(
                what=what,
                ours=each,
                peer="curvlinops",
                beside=seconds(times["curvlinops"] / _COLUMNS),
                value=times.ratio("block", "curvlinops"),
                rival=True,
                residual=error,
            )
        )
    return rows


CASE = Case(
    "blocks",
    "Products with 16 vectors at once",
    {framework: partial(measure, framework) for framework in _BARS},
)
