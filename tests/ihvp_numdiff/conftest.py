"""Problems with hand-written gradients, and their exact products by complex steps in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from ihvp.backend import GradientFunction


@dataclass(frozen=True)
class Problem:
    """A gradient over one vector; ``formula`` also takes complex parameters."""

    formula: Callable[[np.ndarray], np.ndarray]
    x: np.ndarray

    @property
    def gradient(self) -> GradientFunction:
        return GradientFunction(lambda params, batch: self.formula(params))

    def exact_product(self, v: np.ndarray) -> np.ndarray:
        """``Im g(x + i h v) / h``: no difference is taken, so h can be tiny and the result is exact
        (Squire and Trapp, Using complex variables to estimate derivatives, SIAM Review 40, 1998)."""
        h = 1e-30
        return self.formula(self.x.astype(np.float64) + 1j * h * v.astype(np.float64)).imag / h


def tanh_network(sizes: tuple[int, ...], seed: int, dtype: Any = np.float64, examples: int = 40) -> Problem:
    """Mean cross-entropy of a tanh network, its backward pass written out."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(examples, sizes[0])).astype(dtype)
    targets = np.eye(sizes[-1], dtype=dtype)[rng.integers(0, sizes[-1], examples)]
    shapes = [shape for a, b in pairwise(sizes) for shape in ((a, b), (b,))]
    x = np.concatenate([rng.normal(size=s).ravel() / np.sqrt(s[0]) for s in shapes]).astype(dtype)

    def formula(flat: np.ndarray) -> np.ndarray:
        parts, start = [], 0
        for shape in shapes:
            stop = start + int(np.prod(shape))
            parts.append(flat[start:stop].reshape(shape))
            start = stop
        weights, biases = parts[::2], parts[1::2]
        hidden = [inputs]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            hidden.append(np.tanh(hidden[-1] @ weight + bias))
        logits = hidden[-1] @ weights[-1] + biases[-1]
        exponentials = np.exp(logits - logits.real.max(axis=1, keepdims=True))
        delta = exponentials / exponentials.sum(axis=1, keepdims=True) - targets
        delta /= examples
        gradients: list[np.ndarray] = []
        for layer in reversed(range(len(weights))):
            gradients[:0] = [(hidden[layer].T @ delta).ravel(), delta.sum(axis=0)]
            if layer:
                delta = (delta @ weights[layer].T) * (1 - hidden[layer] ** 2)
        return np.concatenate(gradients)

    return Problem(formula, x)


def toy(dtype: Any = np.float64) -> Problem:
    """Squared error of ``w₁ w₂ x`` on the one example (x, y) = (2, 1), at (1, 1/3)."""
    return Problem(lambda w: 4 * (2 * w[0] * w[1] - 1) * w[::-1], np.array([1, 1 / 3], dtype))


def exponentials(dtype: Any = np.float64) -> Problem:
    """``Σ exp(aᵢ wᵢ)``: every derivative exists and none vanishes."""
    a = np.array([0.5, -1.0, 1.5, 2.0], dtype)
    return Problem(lambda w: a * np.exp(a * w), np.array([0.3, -0.2, 0.1, 0.4], dtype))


def softmax_regression(dtype: Any = np.float64) -> Problem:
    """A network without a hidden layer: the digits demo in small."""
    return tanh_network((8, 4), seed=5, dtype=dtype)


@pytest.fixture
def make_network() -> Callable[..., Problem]:
    return tanh_network


@pytest.fixture
def make_toy() -> Callable[..., Problem]:
    return toy


@pytest.fixture
def make_exponentials() -> Callable[..., Problem]:
    return exponentials


PROBLEMS: dict[str, Callable[[Any], Problem]] = {
    "toy": toy,
    "exponentials": exponentials,
    "softmax": softmax_regression,
    "network": lambda dtype: tanh_network((10, 12, 5), seed=6, dtype=dtype),
}


@pytest.fixture(params=PROBLEMS)
def make_problem(request: pytest.FixtureRequest) -> Callable[[Any], Problem]:
    """``make_problem(dtype)`` for each problem by name."""
    return PROBLEMS[request.param]
