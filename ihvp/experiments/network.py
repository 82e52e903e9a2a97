"""A tanh network with squared error: for every framework, by hand in numpy, and its exact products.

loss = mean((tanh(tanh(x W₁) W₂) W₃ − y)²)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, Any]

# Far below the square root of the smallest epsilon: the error, of order h², is none.
_COMPLEX_STEP = 1e-30


def made(
    rng: np.random.Generator, inputs: int, hidden: int, examples: int, dtype: Any = np.float32
) -> tuple[dict[str, NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]:
    """Weights ``w1, w2, w3`` and data ``(x, y)``, random, of the size of a network at its start."""
    shapes = {"w1": (inputs, hidden), "w2": (hidden, hidden), "w3": (hidden, 1)}
    weights = {name: rng.normal(size=s, scale=s[0] ** -0.5).astype(dtype) for name, s in shapes.items()}
    x, y = rng.normal(size=(examples, inputs)), rng.normal(size=(examples, 1))
    return weights, (x.astype(dtype), y.astype(dtype))


def loss(xp: Any) -> Callable[[Arrays, Any], Any]:
    """The loss in the functions ``xp`` of a framework's dialect."""

    def network(w: Arrays, batch: Any) -> Any:
        x, y = batch
        hidden = xp.tanh(xp.matmul(xp.tanh(xp.matmul(x, w["w1"])), w["w2"]))
        error = xp.matmul(hidden, w["w3"]) - y
        return xp.mean(error * error)

    return network


def gradient(w: Arrays, batch: Any) -> dict[str, NDArray[Any]]:
    """The gradient by hand; it is analytic, so that complex weights give a complex gradient."""
    x, y = batch
    first = np.tanh(x @ w["w1"])
    second = np.tanh(first @ w["w2"])
    down = 2 * (second @ w["w3"] - y) / len(x)
    to_second = (down @ w["w3"].T) * (1 - second * second)
    to_first = (to_second @ w["w2"].T) * (1 - first * first)
    return {"w1": x.T @ to_first, "w2": first.T @ to_second, "w3": second.T @ down}


def exact_product(
    gradient: Callable[[Arrays, Any], Arrays], w: Arrays, batch: Any, v: Arrays
) -> NDArray[np.float64]:
    """``H v`` to the last digits of float64, as the imaginary part of the gradient at ``w + i h v``.

    Squire and Trapp, Using complex variables to estimate derivatives of real functions, SIAM Review 40, 1998:
    nothing is subtracted, so that h may be as small as one likes.
    """
    point = {name: w[name].astype(complex) + 1j * _COMPLEX_STEP * v[name] for name in w}
    parts = gradient(point, batch)
    return np.concatenate([(parts[name].imag / _COMPLEX_STEP).reshape(-1) for name in w])
