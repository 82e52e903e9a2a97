"""Softmax regression in numpy with exact products, and what influence is by its definition."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pytest

import ihvp


def softmax(scores):
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class CrossEntropy:
    """The mean (or sum) of the cross-entropies of ``(x, labels)``, and ``decay/2 ‖W‖²`` with each."""

    decay: float = 0.0
    sums: bool = False

    def __call__(self, W, batch):
        return np.mean(self.values(W, batch)) + self.decay / 2 * np.sum(W * W)

    def values(self, W, batch):
        x, labels = batch
        return -np.log(softmax(x @ W)[np.arange(len(x)), labels])

    def rows(self, W, batch):
        x, labels = batch
        outer = softmax(x @ W) - np.eye(W.shape[1], dtype=W.dtype)[labels]
        return (x[:, :, None] * outer[:, None, :]).reshape(len(x), -1) + W.dtype.type(self.decay) * W.ravel()

    def gradient(self, W, batch):
        x, labels = batch
        outer = softmax(x @ W) - np.eye(W.shape[1], dtype=W.dtype)[labels]
        mean = (x.T @ outer / len(x)).ravel() + W.dtype.type(self.decay) * W.ravel()
        return mean * len(x) if self.sums else mean

    def product(self, W, batch, v):
        x, p = batch[0], softmax(batch[0] @ W)
        V = v.reshape(*W.shape, -1)
        s = np.tensordot(x, V, 1)
        s = p[:, :, None] * (s - np.einsum("nc,nck->nk", p, s)[:, None, :])
        mean = (np.tensordot(x.T, s, 1) / len(x)).reshape(v.shape) + W.dtype.type(self.decay) * v
        return mean * len(x) if self.sums else mean

    def hessian(self, W, batch):
        """``(P, P)``, block by block of two classes."""
        (x, _), (d, c) = batch, W.shape
        p, H = softmax(x @ W), np.zeros((d, c, d, c))
        for a in range(c):
            for b in range(a + 1):
                weights = p[:, a] * ((a == b) - p[:, b])
                H[:, a, :, b] = H[:, b, :, a] = (x * weights[:, None]).T @ x / len(x)
        return H.reshape(d * c, d * c) + self.decay * np.eye(d * c)


@dataclass(frozen=True)
class Margin:
    """The logit of one class: linear in the parameters."""

    label: int

    def __call__(self, W, batch):
        return np.mean(batch[0] @ W[:, self.label])

    def rows(self, W, batch):
        rows = np.zeros((len(batch[0]), *W.shape), W.dtype)
        rows[:, :, self.label] = batch[0]
        return rows.reshape(len(rows), -1)

    def gradient(self, W, batch):
        return self.rows(W, batch).mean(axis=0)


class Exact:
    """The derivatives that the losses above have in closed form."""

    device = "cpu"

    def flatten(self, params):
        return np.array(params).ravel()

    def unflatten(self, vector, like):
        return vector.reshape(like.shape)

    def grad(self, loss, params, batch):
        return loss.gradient(params, batch)

    def hvp(self, loss, params, batch, v):
        return loss.product(params, batch, v)

    def per_example_grads(self, loss, params, batch):
        return loss.rows(params, batch)


@dataclass(frozen=True, eq=False)
class Problem:
    """A softmax regression with its optimum."""

    loss: CrossEntropy
    weights: np.ndarray
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]

    def objective(self, data=None, **options):
        options = {"loss": self.loss, "params": self.weights, "backend": Exact(), **options}
        return ihvp.Objective(data=self.train if data is None else data, **options)

    def influence(self, data=None, solver=None, **options):
        solver = ihvp.CG(rtol=1e-12) if solver is None else solver
        return ihvp.Influence(self.objective(data), solver=solver, train_loss=CrossEntropy(), **options)

    @functools.cached_property
    def hessian(self):
        return self.loss.hessian(self.weights, self.train)

    def defined(self, test=None, train=None, test_loss=None, matrix=None, damping=0.0, train_loss=None):
        """``1/N ∇Lᵀ (H + λI)⁻¹ ∇C_i`` by dense linear algebra, ``(n_test, n_train)``."""
        matrix = self.hessian if matrix is None else matrix
        left = (test_loss or self.loss).rows(self.weights, test or self.test)
        right = (train_loss or CrossEntropy()).rows(self.weights, train or self.train)
        damped = matrix + damping * np.eye(len(matrix))
        return left @ np.linalg.solve(damped, right.T) / len(self.train[0])

    def retrained(self, removed):
        """The optimum of what remains, where 1/N stays: chord steps from the old one."""
        inverse, W = np.linalg.inv(self.hessian), self.weights.copy()
        part = tuple(array[removed] for array in self.train)
        for _ in range(60):
            share = len(removed) / len(self.train[0])
            gradient = self.loss.gradient(W, self.train) - share * CrossEntropy().gradient(W, part)
            if np.linalg.norm(gradient) < 1e-10:
                return W
            W = W - (inverse @ gradient).reshape(W.shape)
        raise AssertionError


def optimum(loss, shape, train):
    W = np.zeros(shape)
    for _ in range(50):
        gradient = loss.gradient(W, train)
        if np.linalg.norm(gradient) < 1e-13:
            break
        W = W - np.linalg.solve(loss.hessian(W, train), gradient).reshape(shape)
    return W


@pytest.fixture(scope="session")
def small():
    """P = 12, 23 training examples, 5 test points."""
    rng = np.random.default_rng(7)
    x, labels = rng.normal(size=(28, 4)), rng.integers(0, 3, 28)
    train, test = (x[:23], labels[:23]), (x[23:], labels[23:])
    loss = CrossEntropy(decay=0.05)
    return Problem(loss, optimum(loss, (4, 3), train), train, test)


@pytest.fixture(scope="session")
def digits():
    """The handwritten digits: P = 650, 1,500 for training, 297 test points."""
    from ihvp.experiments.digits import load

    train, test = ((digits.images, digits.labels) for digits in load())
    loss = CrossEntropy(decay=0.01)
    return Problem(loss, optimum(loss, (65, 10), train), train, test)
