"""The time of one product ``H @ v`` as the parameters grow: ``y = xᵀ x``, sizes in equal steps.

The exponent of one gradient stands beside it: caches and fresh memory bend the line of either.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import ihvp
from tests.benchmarks.rows import Case, Row, seconds
from tests.benchmarks.timing import Times, in_turns

_SMALLEST, _LARGEST, _SIZES = 1e5, 1e7, 13


def measure(framework: str, device: str) -> list[Row]:
    """The exponent of the time, fitted from 1e5 to 1e7 parameters, and what a product costs without any."""
    sizes = [round(size) for size in np.linspace(1, _LARGEST, _SIZES)]
    times = [_times(framework, device, size) for size in sizes]
    exponents = {side: _exponent(sizes, [each[side] for each in times]) for side in ("product", "gradient")}
    return [
        Row(
            what=f"exponent of time in P, {_SIZES} sizes in equal steps, fitted from 1e5 to 1e7",
            ours=f"{seconds(times[0]['product'])} for one parameter, {seconds(times[-1]['product'])} for 1e7",
            peer="one gradient",
            beside=f"exponent {exponents['gradient']:.2f}",
            value=exponents["product"],
            low=0.9,
            high=1.1,
        )
    ]


def _exponent(sizes: list[int], times: list[float]) -> float:
    fitted = [(size, time) for size, time in zip(sizes, times, strict=True) if size >= _SMALLEST]
    return float(np.polyfit(*np.log(np.transpose(fitted)), 1)[0])


def _times(framework: str, device: str, size: int) -> Times:
    ones = np.ones(size, dtype=np.float32)
    objective, v = _OBJECTIVES[framework](ones, device)
    H, backend = ihvp.Hessian(objective), objective.backend
    sides = {
        "product": lambda: H @ v,
        "gradient": lambda: backend.grad(objective.loss, objective.params, None),
    }
    return in_turns(sides, budget=0.2)


def _torch(ones: np.ndarray, device: str) -> tuple[ihvp.Objective, Any]:
    import torch

    x = torch.tensor(ones, device=device)
    return ihvp.Objective(lambda w, batch: w["x"] @ w["x"], {"x": x}), x.clone()


def _jax(ones: np.ndarray, device: str) -> tuple[ihvp.Objective, Any]:
    import jax

    x = jax.device_put(ones, jax.devices("cpu" if device == "cpu" else "gpu")[0])
    return ihvp.Objective(_square, x), x


def _tf(ones: np.ndarray, device: str) -> tuple[ihvp.Objective, Any]:
    import tensorflow as tf

    return ihvp.Objective(lambda w, batch: tf.tensordot(w[0], w[0], 1), [tf.Variable(ones)]), ones


def _numdiff(ones: np.ndarray, device: str) -> tuple[ihvp.Objective, Any]:
    return ihvp.Objective(grad=lambda w, batch: 2 * w, params=ones), ones


def _square(x: Any, batch: Any) -> Any:
    return x @ x


_OBJECTIVES: dict[str, Callable[[np.ndarray, str], tuple[ihvp.Objective, Any]]] = {
    "torch": _torch,
    "jax": _jax,
    "tf": _tf,
    "numdiff": _numdiff,
}

CASE = Case(
    "scaling",
    "Growth with P",
    {framework: partial(measure, framework) for framework in _OBJECTIVES},
    often=False,
)
