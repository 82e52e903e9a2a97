"""The problems: a network of tanh layers with cross-entropy, its derivatives by hand in numpy.

All frameworks keep the weights as ``(out, in)``, layer by layer with the biases, so that one flat vector
means the same in each. The float64 oracle is exact to rounding: the gradient is differentiated by a complex
step, for which no difference is taken (Squire and Trapp, SIAM Review 40, 1998).
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Memory
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

Weights = list[NDArray[Any]]
_STEP = 1e-20
_DECAY = 1e-3


@dataclass(frozen=True, eq=False)
class Network:
    """A network at its weights, with its data.

    Attributes
    ----------
    weights : list of ndarray
        W₁ ``(out, in)``, b₁, W₂, …, float32.
    x, y : ndarray
        Inputs ``(N, in)``, float32, and labels ``(N,)``.
    test_x, test_y : ndarray
        Other examples of the same kind.
    """

    weights: Weights
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    test_x: NDArray[np.float32]
    test_y: NDArray[np.int64]

    @property
    def name(self) -> str:
        """The widths of the layers."""
        return "-".join(str(n) for n in (self.weights[0].shape[1], *(b.size for b in self.weights[1::2])))

    @property
    def size(self) -> int:
        """P."""
        return sum(array.size for array in self.weights)

    @functools.cached_property
    def point(self) -> NDArray[np.float32]:
        """The weights as one vector ``(P,)``."""
        return _flat(self.weights)

    def test_gradients(self, count: int) -> NDArray[np.float32]:
        """The gradients of single test examples, ``(P, count)``."""
        singles = (slice(i, i + 1) for i in range(count))
        columns = [_flat(gradient(self.weights, (self.test_x[i], self.test_y[i]))) for i in singles]
        return np.ascontiguousarray(np.stack(columns, axis=1), dtype=np.float32)

    def directions(self, *columns: int) -> NDArray[np.float32]:
        """Random vectors ``(P,)`` or blocks ``(P, k)``."""
        return np.random.default_rng(7).standard_normal((self.size, *columns), dtype=np.float32)

    def hessian_product(self, v: NDArray[Any]) -> NDArray[np.float64]:
        """``H v`` for ``(P,)`` or ``(P, k)``, in float64."""
        data = (self.x.astype(np.float64), self.y)

        def product(column: NDArray[Any]) -> NDArray[np.float64]:
            point = self.point.astype(np.float64) + 1j * _STEP * column.astype(np.float64)
            return _flat(gradient(_cut(point, self.weights), data)).imag / _STEP

        with one_thread():
            return product(v) if v.ndim == 1 else np.stack([product(column) for column in v.T], axis=1)

    def residual(self, solution: Any, v: NDArray[Any], damping: float) -> float:
        """The largest ``‖v − (H + λI) x‖ / ‖v‖`` over the columns."""
        x, v = np.asarray(solution, dtype=np.float64), v.astype(np.float64)
        return largest(v - self.hessian_product(x) - damping * x, v)

    def eigen_residual(self, values: Any, vectors: Any) -> float:
        """The largest ``‖H q − λ q‖ / (λ_max ‖q‖)`` over the pairs."""
        values, q = np.asarray(values, dtype=np.float64), np.asarray(vectors, dtype=np.float64)
        rest = np.linalg.norm(self.hessian_product(q) - q * values, axis=0) / np.linalg.norm(q, axis=0)
        return float(np.max(rest) / np.max(np.abs(values)))


def largest(rest: NDArray[np.float64], v: NDArray[np.float64]) -> float:
    """The largest ``‖rest‖ / ‖v‖`` over the columns."""
    return float(np.max(np.linalg.norm(rest, axis=0) / np.linalg.norm(v, axis=0)))


def example_gradients(problem: Network, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
    """The gradients of single examples, ``(n, P)``, in float64."""
    weights = [array.astype(np.float64) for array in problem.weights]
    singles = (slice(i, i + 1) for i in range(len(y)))
    return np.stack([_flat(gradient(weights, (x[i].astype(np.float64), y[i]))) for i in singles])


def gradient(weights: Weights, batch: tuple[NDArray[Any], NDArray[Any]]) -> Weights:
    """The gradient of the mean cross-entropy, in the weights' structure; also at complex weights."""
    x, y = batch
    hidden = [x]
    for W, b in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        hidden.append(np.tanh(hidden[-1] @ W.T + b))
    outputs = hidden[-1] @ weights[-2].T + weights[-1]
    exponentials = np.exp(outputs - outputs.real.max(axis=1, keepdims=True))
    back = exponentials / exponentials.sum(axis=1, keepdims=True)
    back[np.arange(len(y)), y] -= 1
    back /= len(y)
    result: Weights = []
    for layer in range(len(weights) // 2 - 1, -1, -1):
        result[:0] = [back.T @ hidden[layer], back.sum(axis=0)]
        if layer:
            back = (back @ weights[2 * layer]) * (1 - hidden[layer] ** 2)
    return result


def _loss(weights: Weights, batch: tuple[NDArray[Any], NDArray[Any]]) -> float:
    x, y = batch
    for W, b in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        x = np.tanh(x @ W.T + b)
    outputs = x @ weights[-2].T + weights[-1]
    outputs -= outputs.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(outputs).sum(axis=1)) - outputs[np.arange(len(y)), y]))


def digits(*hidden: int, train: int = 1500, steps: int = 200) -> Network:
    """Scikit-learn's handwritten digits: the first for training, the others for testing.

    Trained with weight decay by a fixed number of steps of L-BFGS; kept for the processes of all cases, as
    scikit-learn alone takes seconds to load.
    """
    kept = Memory(Path(__file__).parents[2] / "build" / "networks", verbose=0)
    return kept.cache(_fitted)((64, *hidden, 10), train, steps)  # type: ignore[no-any-return]


def _fitted(widths: tuple[int, ...], train: int, steps: int) -> Network:
    from scipy.optimize import minimize
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x, weights = (pixels / 16).astype(np.float32), _initial(widths)
    batch = (x[:train].astype(np.float64), labels[:train])

    def objective(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        at = _cut(point, weights)
        return _loss(at, batch) + _DECAY / 2 * point @ point, _flat(gradient(at, batch)) + _DECAY * point

    start = _flat(weights).astype(np.float64)
    with one_thread():
        fit = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": steps})
    rest = slice(train, None) if train < len(x) else slice(None)
    return Network(_cut(fit.x.astype(np.float32), weights), x[:train], labels[:train], x[rest], labels[rest])


def made(*widths: int, rows: int = 1000) -> Network:
    """Made examples and weights as they are initialised."""
    generator = np.random.default_rng(3)
    x = generator.standard_normal((rows, widths[0]), dtype=np.float32)
    y = generator.integers(0, widths[-1], rows)
    return Network(_initial(widths), x, y, x, y)


def one_thread() -> threadpool_limits:
    """Numpy's products in one thread: where other processes run, its threads wait for each other for long."""
    return threadpool_limits(1, user_api="blas")


def wide() -> Network:
    """784-512-512-10 over 1,000 made examples, P = 669,706."""
    return made(784, 512, 512, 10)


# The operations of a linearised product beside those of a gradient on the wide network: 4.74 and 3.18 GFLOP,
# as XLA counts them.
PRODUCT_LIMIT = 1.49


def _initial(widths: tuple[int, ...]) -> Weights:
    generator = np.random.default_rng(5)
    weights: Weights = []
    for inputs, outputs in itertools.pairwise(widths):
        normal = generator.standard_normal((outputs, inputs), dtype=np.float32)
        weights.append(normal / np.float32(inputs**0.5))
        weights.append(np.zeros(outputs, dtype=np.float32))
    return weights


def _flat(arrays: Weights) -> NDArray[Any]:
    return np.concatenate([array.ravel() for array in arrays])


def _cut(vector: NDArray[Any], like: Weights) -> Weights:
    stops = np.cumsum([array.size for array in like])
    pieces = np.split(vector, stops[:-1])
    return [piece.reshape(array.shape) for piece, array in zip(pieces, like, strict=True)]
