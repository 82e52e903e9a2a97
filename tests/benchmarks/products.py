"""``H @ v`` again and again, beside one gradient of the same framework."""

from __future__ import annotations

from functools import partial

import numpy as np

from tests.benchmarks.models import MODELS, TorchModel
from tests.benchmarks.peers import curvlinops_hessian
from tests.benchmarks.problems import PRODUCT_LIMIT, wide
from tests.benchmarks.rows import Case, Row, seconds
from tests.benchmarks.timing import in_turns

# Where the operations allow no useful bar, their number stands in its place.
_BARS = {"torch": 1.6, "jax": None, "tf": 1.9, "numdiff": 2.1}


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
    times = in_turns(sides, budget=4.0)
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
    if _BARS[framework] is None:
        rows.append(
            Row(
                what=what,
                ours=seconds(times["product"]),
                peer="operations counted",
                beside=f"{PRODUCT_LIMIT} gradients",
                value=times.ratio("product", "gradient") / PRODUCT_LIMIT,
                residual=error,
            )
        )
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


CASE = Case(
    "products", "Products with one vector", {framework: partial(measure, framework) for framework in _BARS}
)
