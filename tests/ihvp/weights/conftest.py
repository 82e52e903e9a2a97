"""A regression whose examples have weights, with everything that follows from them in dense algebra."""

from __future__ import annotations

import numpy as np
import pytest

import ihvp

N, P = 23, 4


class Mean:
    """``Σ wₙCₙ / Σ wₙ`` with ``Cₙ = (tanh(xₙ·ω) − yₙ)² / 2``, which may be the quotient of two zeros."""

    reduction = "mean"

    def terms(self, omega, batch):
        """Each loss, and its first and second derivative by ``x·ω``."""
        x, y, _ = batch
        t = np.tanh(x @ omega)
        r, slope = t - y, 1 - t**2
        return r**2 / 2, r * slope, slope**2 - 2 * r * t * slope

    def divisor(self, batch):
        return batch[2].sum()

    def __call__(self, omega, batch):
        return (batch[2] * self.terms(omega, batch)[0]).sum() / self.divisor(batch)

    def gradient(self, omega, batch):
        return batch[0].T @ (batch[2] * self.terms(omega, batch)[1]) / self.divisor(batch)

    def product(self, omega, batch, v):
        curvature = batch[2] * self.terms(omega, batch)[2]
        return batch[0].T @ (curvature * (batch[0] @ v).T).T / self.divisor(batch)


class Sum(Mean):
    reduction = "sum"

    def divisor(self, batch):
        return 1.0


class Plain:
    """A backend of five members: gradients of single examples are gradients of batches of one."""

    device = "cpu"

    def flatten(self, params):
        return params.copy()

    def unflatten(self, vector, like):
        return vector.copy()

    def grad(self, loss, params, batch):
        return loss.gradient(params, batch)

    def hvp(self, loss, params, batch, v):
        return loss.product(params, batch, v)


class Vectorised(Plain):
    """The gradients of all examples at once, which are NaN where the weight is 0, as frameworks make them."""

    def per_example_grads(self, loss, params, batch):
        with np.errstate(invalid="ignore"):
            singles = [tuple(array[i : i + 1] for array in batch) for i in range(len(batch[0]))]
            return np.stack([loss.gradient(params, single) for single in singles])

    def example_products(self, loss, params, batch, v):
        return self.per_example_grads(loss, params, batch) @ v

    def linearize(self, loss, params, batch):
        return lambda v: loss.product(params, batch, v)


class Loader:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class Problem:
    """Twenty-three examples, some of weight 0, the first among them."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        w = rng.integers(0, 4, N).astype(float)
        w[[0, 3, 8, 9]] = 0
        self.data = rng.standard_normal((N, P)), rng.standard_normal(N), w
        self.omega = rng.standard_normal(P)
        self.test = rng.standard_normal((5, P)), rng.standard_normal(5), np.array([1.0, 2.0, 0.0, 1.0, 3.0])
        self.shares = w / w.sum()

    def slopes(self, data):
        """``∇Cₙ``, ``(n, P)``; those of examples without weight do not exist, and count as 0."""
        return Mean().terms(self.omega, data)[1][:, None] * data[0] * (data[2] > 0)[:, None]

    @property
    def gradient(self):
        return self.shares @ self.slopes(self.data)

    def hessian(self, data=None):
        x, _, w = data = self.data if data is None else data
        return (x.T * (w * Mean().terms(self.omega, data)[2])) @ x / w.sum()

    @property
    def opg(self):
        return (self.slopes(self.data).T * self.shares) @ self.slopes(self.data)

    def scores(self, damping, test=None, train=None):
        """``w_i/W ∇L(z_j)ᵀ (H + λI)⁻¹ ∇C_i``."""
        test, train = self.test if test is None else test, self.data if train is None else train
        inverse = np.linalg.inv(self.hessian() + damping * np.eye(P))
        shares = train[2] / self.data[2].sum()
        return self.slopes(test) @ inverse @ (self.slopes(train) * shares[:, None]).T

    def rows(self, *parts):
        return [tuple(array[part] for array in self.data) for part in parts]

    def batched(self, form):
        """The data and the batch size of one of the forms below."""
        # The first batch is one example, and the third two, that weigh nothing.
        ragged = self.rows(slice(0, 1), slice(1, 8), slice(8, 10), slice(10, 23))
        return {
            "whole": (self.data, None),
            "cut": (self.data, 4),
            "singly": (self.data, 1),
            "list": (ragged, None),
            "cut list": (ragged, 3),
            "loader": (Loader(ragged), None),
        }[form]

    def objective(self, form="whole", loss=None, backend=None, **options):
        loss = loss or Mean()
        data, batch_size = self.batched(form)
        options = {"weights": lambda batch: batch[2], "backend": backend or Vectorised(), **options}
        return ihvp.Objective(loss, self.omega, data, batch_size, loss.reduction, **options)


FORMS = ("whole", "cut", "singly", "list", "cut list", "loader")


@pytest.fixture
def problem():
    return Problem()


@pytest.fixture(params=[Mean(), Sum()], ids=["mean", "sum"])
def loss(request):
    return request.param


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


@pytest.fixture(params=[Plain(), Vectorised()], ids=["plain", "vectorised"])
def backend(request):
    return request.param


@pytest.fixture
def objective(problem, form, loss, backend):
    """In every form of data, both reductions, with and without vectorised gradients; nothing is silent."""
    with np.errstate(all="raise"):
        yield problem.objective(form, loss, backend)
