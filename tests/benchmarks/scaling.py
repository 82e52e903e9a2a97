"""The time of a product as the parameters grow: ``y = xᵀ x``, one product ``H @ v``.

``FULL=1`` takes the 199 sizes of the original experiment, from 1 to 1e7 in equal steps.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import ihvp
from tests.benchmarks.rows import Case, Row, seconds
from tests.benchmarks.timing import in_turns

_SMALLEST, _LARGEST = 1e5, 1e7


def measure(framework: str, device: str) -> list[Row]:
    """The exponent of the time, fitted from 1e5 to 1e7 parameters."""
    full = bool(os.environ.get("FULL"))
    sizes = np.linspace(1, _LARGEST, 199) if full else np.geomspace(_SMALLEST, _LARGEST, 9)
    numbers = [round(size) for size in sizes]
    times = [_time(framework, device, number, 0.1 if full else 0.5) for number in numbers]
    fitted = [(P, t) for P, t in zip(numbers, times, strict=True) if P >= _SMALLEST]
    exponent = float(np.polyfit(*np.log(np.transpose(fitted)), 1)[0])
    return [
        Row(
            what=f"exponent of time in P, {len(fitted)} sizes from {fitted[0][0]:.0e} to 1e7",
            ours=f"{seconds(fitted[0][1])} to {seconds(fitted[-1][1])}",
            peer="linear",
            beside="1",
            value=exponent,
            low=0.9,
            high=1.1,
        )
    ]


def _time(framework: str, device: str, size: int, budget: float) -> float:
    ones = np.ones(size, dtype=np.float32)
    objective, v = _OBJECTIVES[framework](ones, device)
    H = ihvp.Hessian(objective)
    return in_turns({"product": lambda: H @ v}, budget=budget)["product"]


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

CASE = Case("scaling", {framework: partial(measure, framework) for framework in _OBJECTIVES})
