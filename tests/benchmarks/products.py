"""``H @ v`` again and again, beside one gradient of the same framework."""

from __future__ import annotations

from functools import partial

import numpy as np

from tests.benchmarks.models import MODELS, TorchModel
from tests.benchmarks.peers import curvlinops_hessian
from tests.benchmarks.problems import wide
from tests.benchmarks.rows import Case, Row, seconds
from tests.benchmarks.timing import in_turns

_BARS = {"torch": 1.6, "jax": 1.3, "tf": 1.9, "numdiff": 2.1}


def measure(framework: str, device: str) -> list[Row]:
    """The product with one vector, in gradients."""
    problem = wide()
    model = MODELS[framework](problem, device)
    H, direction = model.hessian(), problem.directions()
    v = model.native(direction)
    sides = {"product": lambda: H @ v, "gradient": model.gradient}
    if isinstance(model, TorchModel):
        other = curvlinops_hessian(model)
        sides["curvlinops"] = lambda: other @ v
    times = in_turns(sides)
    exact = problem.hessian_product(direction)
    computed = np.asarray(H @ direction, dtype=np.float64)
    error = float(np.linalg.norm(computed - exact) / np.linalg.norm(exact))
    what = f"H v repeated, {problem.name}, batch 1,000"
    rows = [
        Row(
            what=what,
            ours=seconds(times["product"]),
            peer="one gradient",
            beside=seconds(times["gradient"]),
            value=times.ratio("product", "gradient"),
            high=_BARS[framework],
            residual=error,
        )
    ]
    if "curvlinops" in sides:
        rows.append(
            Row(
                what=what,
                ours=seconds(times["product"]),
                peer="curvlinops",
                beside=seconds(times["curvlinops"]),
                value=times.ratio("product", "curvlinops"),
                rival=True,
                residual=error,
            )
        )
    return rows


CASE = Case("products", {framework: partial(measure, framework) for framework in _BARS})
