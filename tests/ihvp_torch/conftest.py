from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ihvp_torch._backend import TorchBackend


@pytest.fixture
def backend() -> TorchBackend:
    return TorchBackend()


class Toy(nn.Module):
    """``y = w₂ w₁ x`` at ``w = (1, 1/3)``: with ``x = 2`` and target 1 the loss is ``(1 − 2 w₁ w₂)²``."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.second = nn.Parameter(torch.tensor(1 / 3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.second * self.first * x


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def toy_loss() -> Callable[[Toy, None], Tensor]:
    return lambda model, batch: (1 - model(2.0)) ** 2


@pytest.fixture
def toy_gradient() -> np.ndarray:
    return np.array([-4 / 9, -4 / 3])


@pytest.fixture
def toy_hessian() -> np.ndarray:
    return np.array([[8 / 9, 4 / 3], [4 / 3, 8]])


class TanhNet(nn.Module):
    """3 inputs, 4 tanh units, 2 outputs in float64."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.hidden = nn.Linear(3, 4, dtype=torch.float64)
        self.out = nn.Linear(4, 2, dtype=torch.float64)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=random, dtype=p.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(x)))


@pytest.fixture
def square_loss() -> Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return (model(x) - y).square().mean()

    return loss


@pytest.fixture
def net() -> TanhNet:
    return TanhNet()


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    return random.standard_normal((5, 3)), random.standard_normal((5, 2))


@pytest.fixture
def vector() -> Tensor:
    return torch.from_numpy(np.random.default_rng(2).standard_normal(26))


def numpy_gradient(w: np.ndarray, batch: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The gradient of ``square_loss`` of a ``TanhNet`` with parameters ``w``, by hand."""
    x, y = batch
    a, b, c, d = w[:12].reshape(4, 3), w[12:16], w[16:24].reshape(2, 4), w[24:]
    h = np.tanh(x @ a.T + b)
    delta = 2 * (h @ c.T + d - y) / y.size
    back = delta @ c * (1 - h**2)
    return np.concatenate([(back.T @ x).ravel(), back.sum(0), (delta.T @ h).ravel(), delta.sum(0)])


def numpy_hessian(w: np.ndarray, batch: tuple[np.ndarray, np.ndarray], step: float = 1e-4) -> np.ndarray:
    """Fourth-order central differences of ``numpy_gradient``; right to about 1e-11."""

    def shifted(times: int) -> np.ndarray:
        return np.stack([numpy_gradient(w + times * step * e, batch) for e in np.eye(w.size)])

    return (8 * (shifted(1) - shifted(-1)) - (shifted(2) - shifted(-2))) / (12 * step)


@pytest.fixture
def gradient(net: TanhNet, batch: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return numpy_gradient(torch.cat([p.detach().reshape(-1) for p in net.parameters()]).numpy(), batch)


@pytest.fixture
def hessian(net: TanhNet, batch: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    w = torch.cat([p.detach().reshape(-1) for p in net.parameters()]).numpy()
    return numpy_hessian(w, batch)


class Differences:
    """Derivatives of a module's loss from ``backward()`` alone: torch is no oracle for its own second one."""

    def __init__(self, loss, model: nn.Module, batch) -> None:
        self._loss, self._model, self._batch = loss, model, batch
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self.point = self._flat(self._parameters)

    def gradient(self, batch=None) -> np.ndarray:
        """With the state of the module, such as running means, as it was."""
        state = {name: value.clone() for name, value in self._model.state_dict().items()}
        for p in self._parameters:
            p.grad = None
        self._loss(self._model, self._batch if batch is None else batch).backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        for p in self._parameters:
            p.grad = None
        self._model.load_state_dict(state)
        return self._flat(gradients)

    @property
    def hessian(self) -> np.ndarray:
        def at(w: np.ndarray) -> np.ndarray:
            nn.utils.vector_to_parameters(torch.from_numpy(w), self._parameters)
            return self.gradient()

        try:
            return np.stack(
                [fourth_order(lambda t, e=e: at(self.point + t * e)) for e in np.eye(len(self.point))], 1
            )
        finally:
            nn.utils.vector_to_parameters(torch.from_numpy(self.point), self._parameters)

    @property
    def rows(self) -> np.ndarray:
        """The gradients of single examples."""
        x, y = self._batch
        return np.stack([self.gradient((x[i : i + 1], y[i : i + 1])) for i in range(len(x))])

    def by_inputs(self, v: np.ndarray) -> np.ndarray:
        """The derivative of ``∇ loss · v`` by the first array of the batch."""
        x, y = self._batch
        units = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
        entries = [fourth_order(lambda t, e=e: self.gradient((x + t * e, y)) @ v) for e in units]
        return np.array(entries).reshape(x.shape)

    @staticmethod
    def _flat(tensors) -> np.ndarray:
        return torch.cat([t.detach().reshape(-1) for t in tensors]).numpy().copy()


def fourth_order(function, step: float = 1e-3):
    """The derivative of a function of a number at zero."""
    near, far = function(step) - function(-step), function(2 * step) - function(-2 * step)
    return (8 * near - far) / (12 * step)


@pytest.fixture
def differences() -> type[Differences]:
    return Differences
