"""The time of one product ``H @ v`` as the parameters grow: ``y = xᵀ x``, sizes in equal steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import ihvp
from tests.benchmarks.rows import Case, Row, seconds
from tests.benchmarks.timing import in_turns

_SMALLEST, _LARGEST, _SIZES = 1e5, 1e7, 25


def measure(framework: str, device: str) -> list[Row]:
    """The exponent of the time, fitted from 1e5 to 1e7 parameters, and what a product costs without any."""
    sizes = [round(size) for size in np.linspace(1, _LARGEST, _SIZES)]
    times = [_time(framework, device, size, 0.1) for size in sizes]
    fitted = [(P, t) for P, t in zip(sizes, times, strict=True) if P >= _SMALLEST - 1]
    exponent = float(np.polyfit(*np.log(np.transpose(fitted)), 1)[0])
    return [
        Row(
            what=f"exponent of time in P, {_SIZES} sizes in equal steps, fitted from 1e5 to 1e7",
            ours=f"{seconds(fitted[0][1])} to {seconds(fitted[-1][1])}",
            peer="linear",
            beside=f"1; {seconds(times[0])} for one parameter",
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
