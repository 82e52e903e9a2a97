"""The gradients of single examples, beside ``vmap(grad)`` written by hand at its best chunk."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tests.benchmarks.models import MODELS, JaxModel, TorchModel
from tests.benchmarks.problems import digits
from tests.benchmarks.rows import Case, Row, seconds
from tests.benchmarks.timing import in_turns

_CHUNKS = (32, 128, 512, 1797)
_BAR = 1.1


def measure(framework: str, device: str) -> list[Row]:
    """Both sides give one array ``(N, P)``."""
    problem = digits(256, 256, train=1797, steps=20)
    model = MODELS[framework](problem, device)
    by_hand = _torch_by_hand if isinstance(model, TorchModel) else _jax_by_hand
    objective = model.objective()
    sides = {f"chunks of {chunk}": by_hand(model, chunk) for chunk in _CHUNKS}
    best = in_turns(sides, budget=0.0).fastest(*sides)
    times = in_turns({"ihvp": objective.per_example_gradients, best: sides[best]}, budget=4.0)
    ours, other = objective.per_example_gradients(), sides[best]()
    error = float(abs(ours - other).max() / abs(other).max())
    return [
        Row(
            what=f"per-example gradients, N = {len(problem.y):,}, digits {problem.name}",
            ours=seconds(times["ihvp"]),
            peer="vmap(grad) by hand",
            beside=f"{seconds(times[best])}, {best}",
            value=times.ratio("ihvp", best),
            rival=True,
            high=_BAR,
            residual=error,
        )
    ]


def _torch_by_hand(model: TorchModel, chunk: int) -> Callable[[], Any]:
    import torch

    named = {name: p.detach() for name, p in model.module.named_parameters()}
    x, y = model.batch
    size = sum(p.numel() for p in named.values())

    def loss(params: Any, x: Any, y: Any) -> Any:
        outputs = torch.func.functional_call(model.module, params, (x[None],))
        return model.criterion(outputs, y[None])

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))

    def gradients() -> Any:
        rows = torch.empty(len(y), size, device=x.device)
        for start in range(0, len(y), chunk):
            stop = start + chunk
            parts = each(named, x[start:stop], y[start:stop])
            torch.cat([p.flatten(1) for p in parts.values()], dim=1, out=rows[start:stop])
        return rows

    return gradients


def _jax_by_hand(model: JaxModel, chunk: int) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp
    from jax.flatten_util import ravel_pytree

    x, y = model.batch

    @jax.jit
    def each(weights: Any, x: Any, y: Any) -> Any:
        def one(x: Any, y: Any) -> Any:
            return ravel_pytree(jax.grad(model.loss)(weights, (x[None], y[None])))[0]

        return jax.vmap(one)(x, y)

    def gradients() -> Any:
        stops = range(0, len(y), chunk)
        parts = [each(model.params, x[start : start + chunk], y[start : start + chunk]) for start in stops]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

    return gradients


CASE = Case(
    "per_example",
    "Gradients of single examples",
    {framework: partial(measure, framework) for framework in ("torch", "jax")},
)
