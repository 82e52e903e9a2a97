"""Problems with derivatives that are known without any framework: the oracles of the contract suite.

A problem's loss is written once in a :class:`~ihvp.backend.Dialect`. Its gradient is written a second time by
hand, in numpy. The Hessian comes from that gradient by complex steps, ``Im g(ω + ih eⱼ) / h`` with h = 1e-20,
which is exact to rounding because no difference is taken (Squire and Trapp, SIAM Review 40, 1998).

Parameters are named so that their insertion order is their sorted order: frameworks sort or do not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Rows = slice | NDArray[np.intp]
_STEP = 1e-20


class Problem(ABC):
    """A loss with parameters, one batch, and hand-made derivatives.

    Attributes
    ----------
    name : str
    params : dict of ndarray
        The point ω, float64.
    batch : tuple of ndarray
        The examples, one a row.

    Examples
    --------
    The toy problem's inverse product is known in closed form:

    >>> import numpy as np
    >>> from ihvp.testing import PROBLEMS
    >>> toy = next(problem for problem in PROBLEMS if problem.name == "toy")
    >>> np.linalg.solve(toy.hessian(), np.ones(2)).round(6)
    array([ 1.25    , -0.083333])
    """

    name: str
    params: Arrays
    batch: tuple[NDArray[Any], ...]

    @abstractmethod
    def loss(self, xp: Any, params: Mapping[str, Any], batch: Any) -> Any:
        """The mean loss over the batch, in the functions of ``xp``."""

    @abstractmethod
    def gradient(self, params: Mapping[str, NDArray[Any]], batch: Any) -> Arrays:
        """Its gradient by hand, in numpy; analytic, so that complex parameters may enter."""

    def flat(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """All arrays as one vector, row by row."""
        return np.concatenate([np.ravel(arrays[key]) for key in self.params])

    def structured(self, vector: NDArray[Any]) -> Arrays:
        """The inverse of :meth:`flat`."""
        stops = np.cumsum([value.size for value in self.params.values()])
        pieces = np.split(vector, stops[:-1])
        return {
            key: piece.reshape(value.shape)
            for (key, value), piece in zip(self.params.items(), pieces, strict=True)
        }

    @property
    def size(self) -> int:
        """P."""
        return sum(value.size for value in self.params.values())

    def flat_gradient(self, at: NDArray[Any] | None = None, rows: Rows = slice(None)) -> NDArray[Any]:
        """The gradient ``(P,)`` at the flat point ``at``, over some rows of the batch."""
        params = self.params if at is None else self.structured(at)
        return self.flat(self.gradient(params, tuple(array[rows] for array in self.batch)))

    def hessian(self, rows: Rows = slice(None)) -> NDArray[np.float64]:
        """The Hessian ``(P, P)``, over some rows of the batch."""
        return _complex_jacobian(lambda point: self.flat_gradient(point, rows), self.flat(self.params))

    def opg(self, rows: slice = slice(None)) -> NDArray[np.float64]:
        """``1/B Σ gₙ gₙᵀ`` with the gradients gₙ of single examples, over some rows of the batch."""
        singles = range(*rows.indices(self.rows))
        J = np.stack([self.flat_gradient(rows=slice(n, n + 1)) for n in singles])
        return np.asarray(J.T @ J / len(J))

    def input_derivatives(self, v: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """The derivatives of ``∇ loss · v`` by the arrays of the batch, in their shapes."""
        return tuple(self._input_derivative(place, v) for place in range(len(self.batch)))

    def _input_derivative(self, place: int, v: NDArray[np.float64]) -> NDArray[np.float64]:
        def gradient(values: NDArray[Any]) -> NDArray[Any]:
            shape = self.batch[place].shape
            batch = (*self.batch[:place], values.reshape(shape), *self.batch[place + 1 :])
            return self.flat(self.gradient(self.params, batch))

        jacobian = _complex_jacobian(gradient, np.ravel(self.batch[place]))
        return (v @ jacobian).reshape(self.batch[place].shape)

    @property
    def rows(self) -> int:
        """The number of examples."""
        return int(self.batch[0].shape[0])


class PredictingProblem(Problem):
    """A problem whose loss is the softmax cross-entropy of a model's outputs."""

    def loss(self, xp: Any, params: Mapping[str, Any], batch: Any) -> Any:
        return self.output_loss(xp, self.predict(xp, params, batch), batch)

    @abstractmethod
    def predict(self, xp: Any, params: Mapping[str, Any], batch: Any) -> Any:
        """The logits ``(B, C)``."""

    def output_loss(self, xp: Any, outputs: Any, batch: Any) -> Any:
        """The mean cross-entropy of logits with one-hot targets."""
        targets = batch[1]
        log_normaliser = xp.log(xp.sum(xp.exp(outputs), axis=1))
        return xp.mean(log_normaliser - xp.sum(outputs * targets, axis=1))

    def output_gradient(self, outputs: NDArray[Any], targets: NDArray[Any]) -> NDArray[Any]:
        """``(softmax − target) / B``."""
        exponentials = np.exp(outputs)
        return np.asarray((exponentials / exponentials.sum(axis=1, keepdims=True) - targets) / len(targets))

    def jacobian(self, rows: slice = slice(None)) -> NDArray[np.float64]:
        """J of the logits, ``(B, C, P)``, over some rows of the batch."""
        batch = tuple(array[rows] for array in self.batch)
        found = _complex_jacobian(
            lambda point: self.predict(np, self.structured(point), batch).ravel(), self.flat(self.params)
        )
        return found.reshape(len(batch[0]), -1, self.size)

    def gauss_newton(self, rows: slice = slice(None)) -> NDArray[np.float64]:
        """``1/B Σ J_nᵀ (diag(p) − p pᵀ) J_n``, ``(P, P)``, over some rows of the batch."""
        outputs = self.predict(np, self.params, tuple(array[rows] for array in self.batch))
        jacobian = self.jacobian(rows)
        p = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
        curvature = np.einsum("nc,cd->ncd", p, np.eye(p.shape[1])) - np.einsum("nc,nd->ncd", p, p)
        return np.asarray(np.einsum("ncp,ncq->pq", jacobian, curvature @ jacobian) / len(outputs))


class LeastSquares(Problem):
    """``1/B Σ ½ (xₙᵀω − yₙ)²``: a quadratic, H = XᵀX / B wherever it is taken."""

    name = "least squares"

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.params = {"w": generator.standard_normal((6, 1))}
        self.batch = (generator.standard_normal((8, 6)), generator.standard_normal((8, 1)))

    def loss(self, xp: Any, params: Mapping[str, Any], batch: Any) -> Any:
        x, y = batch
        return xp.mean((x @ params["w"] - y) ** 2) / 2

    def gradient(self, params: Mapping[str, NDArray[Any]], batch: Any) -> Arrays:
        x, y = batch
        return {"w": x.T @ (x @ params["w"] - y) / len(x)}


class SeedToy(Problem):
    """The toy problem of influence-function tutorials: ``(1 − 2 w₁ w₂)²`` at (1, 1/3).

    H = [[8/9, 4/3], [4/3, 8]] and H⁻¹(1, 1) = (5/4, −1/12).
    """

    name = "toy"

    def __init__(self) -> None:
        self.params = {"w1": np.array([[1.0]]), "w2": np.array([[1.0 / 3.0]])}
        self.batch = (np.array([[2.0]]), np.array([[1.0]]))

    def loss(self, xp: Any, params: Mapping[str, Any], batch: Any) -> Any:
        x, y = batch
        return xp.mean((y - x @ params["w1"] @ params["w2"]) ** 2)

    def gradient(self, params: Mapping[str, NDArray[Any]], batch: Any) -> Arrays:
        (x, y), w1, w2 = batch, params["w1"], params["w2"]
        error = -2 * np.mean((y - x * w1 * w2) * x)
        return {"w1": error * w2, "w2": error * w1}


class SoftmaxRegression(PredictingProblem):
    """Cross-entropy of a linear model: convex, its Hessian singular along the shifts of all classes."""

    name = "softmax regression"

    def __init__(self) -> None:
        generator = np.random.default_rng(1)
        self.params = {
            "bias": generator.standard_normal(3) / 3,
            "weight": generator.standard_normal((4, 3)) / 3,
        }
        self.batch = (generator.standard_normal((7, 4)), np.eye(3)[generator.integers(0, 3, 7)])

    def predict(self, xp: Any, params: Mapping[str, Any], batch: Any) -> Any:
        return batch[0] @ params["weight"] + params["bias"]

    def gradient(self, params: Mapping[str, NDArray[Any]], batch: Any) -> Arrays:
        outer = self.output_gradient(self.predict(np, params, batch), batch[1])
        return {"bias": outer.sum(axis=0), "weight": batch[0].T @ outer}


class TanhMLP(PredictingProblem):
    """Cross-entropy of a network with one hidden layer of tanh: not convex.

    The sizes make P = (inputs + 1) hidden + (hidden + 1) classes.
    """

    name = "tanh network"

    def __init__(self, inputs: int = 5, hidden: int = 4, classes: int = 3, rows: int = 9) -> None:
        generator = np.random.default_rng(2)
        self.params = {
            "b1": generator.standard_normal(hidden) / 2,
            "b2": generator.standard_normal(classes) / 2,
            "w1": generator.standard_normal((inputs, hidden)) / np.sqrt(inputs),
            "w2": generator.standard_normal((hidden, classes)) / np.sqrt(hidden),
        }
        targets = np.eye(classes)[generator.integers(0, classes, rows)]
        self.batch = (generator.standard_normal((rows, inputs)), targets)

    def predict(self, xp: Any, params: Mapping[str, Any], batch: Any) -> Any:
        return xp.tanh(batch[0] @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]

    def gradient(self, params: Mapping[str, NDArray[Any]], batch: Any) -> Arrays:
        outer = self.output_gradient(self.predict(np, params, batch), batch[1])
        return self.pulled_back(params, batch, outer)

    def pulled_back(self, params: Mapping[str, NDArray[Any]], batch: Any, outer: NDArray[Any]) -> Arrays:
        """The gradient of ``⟨outer, outputs⟩``."""
        x = batch[0]
        hidden = np.tanh(x @ params["w1"] + params["b1"])
        inner = (outer @ params["w2"].T) * (1 - hidden**2)
        return {"b1": inner.sum(axis=0), "b2": outer.sum(axis=0), "w1": x.T @ inner, "w2": hidden.T @ outer}

    def hvp(self, v: NDArray[np.float64]) -> NDArray[np.float64]:
        """``H v`` for ``(P,)``, where the whole matrix would be too large."""
        point = self.flat(self.params) + 1j * _STEP * v
        return self.flat(self.gradient(self.structured(point), self.batch)).imag / _STEP


class SeedNetwork(PredictingProblem):
    """Cross-entropy of an 8-4-4-2 network of softplus, P = 66, on N = 1,000 made examples.

    The example of Nilsen et al., "Efficient computation of Hessian matrices in TensorFlow", 2019.
    """

    name = "8-4-4-2 softplus network"

    def __init__(self) -> None:
        generator = np.random.default_rng(4)
        widths = ((8, 4), (4, 4), (4, 2))
        biases = {f"b{i}": generator.standard_normal(n) / 4 for i, (_, n) in enumerate(widths, 1)}
        weights = {
            f"w{i}": generator.standard_normal((m, n)) / np.sqrt(m) for i, (m, n) in enumerate(widths, 1)
        }
        self.params = biases | weights
        x = generator.standard_normal((1000, 8))
        classes = (x[:, 0] * x[:, 1] + x[:, 2] > generator.standard_normal(1000) / 2).astype(int)
        self.batch = (x, np.eye(2)[classes])

    def predict(self, xp: Any, params: Mapping[str, Any], batch: Any) -> Any:
        hidden = batch[0]
        for i in "12":
            hidden = xp.log(1 + xp.exp(hidden @ params["w" + i] + params["b" + i]))
        return hidden @ params["w3"] + params["b3"]

    def gradient(self, params: Mapping[str, NDArray[Any]], batch: Any) -> Arrays:
        inputs, slopes = [batch[0]], []
        for i in "12":
            exponentials = np.exp(inputs[-1] @ params["w" + i] + params["b" + i])
            inputs.append(np.log(1 + exponentials))
            slopes.append(exponentials / (1 + exponentials))
        outer = self.output_gradient(inputs[2] @ params["w3"] + params["b3"], batch[1])
        result = {}
        for layer in (3, 2, 1):
            result[f"b{layer}"], result[f"w{layer}"] = outer.sum(axis=0), inputs[layer - 1].T @ outer
            if layer > 1:
                outer = (outer @ params[f"w{layer}"].T) * slopes[layer - 2]
        return result


PROBLEMS: tuple[Problem, ...] = (LeastSquares(), SeedToy(), SoftmaxRegression(), TanhMLP())
"""One of each."""


def _complex_jacobian(
    function: Callable[[NDArray[Any]], NDArray[Any]], point: NDArray[Any]
) -> NDArray[np.float64]:
    directions = np.eye(point.size)
    columns = [function(point + 1j * _STEP * direction).imag / _STEP for direction in directions]
    return np.stack(columns, axis=1)
