"""A problem in each framework: its parameters, its loss, one gradient as a user writes it, and ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ihvp
from tests.benchmarks.problems import Network, gradient


class Model:
    """A network in one framework.

    Attributes
    ----------
    params, batch, loss, predict, output_loss
        As ``ihvp.Objective`` takes them; the last two of torch and JAX.
    """

    params: Any
    batch: Any
    loss: Callable[[Any, Any], Any]
    predict: Callable[[Any, Any], Any]
    output_loss: Callable[[Any, Any], Any]

    def objective(self, batch: Any = None, *, checks: bool = True) -> ihvp.Objective:
        """The mean loss over the problem's data, or over a part of them."""
        return ihvp.Objective(self.loss, self.params, self.batch if batch is None else batch, checks=checks)

    def predicting(self) -> ihvp.Objective:
        """The mean loss as a function of the outputs, which a Gauss–Newton matrix needs."""
        return ihvp.Objective(self.output_loss, self.params, self.batch, predict=self.predict)

    def hessian(self) -> ihvp.Hessian:
        """Its Hessian."""
        return ihvp.Hessian(self.objective())

    def native(self, array: NDArray[Any]) -> Any:
        """A numpy array in the vectors' array type, on their device."""
        return array

    def gradient(self) -> Any:
        """One gradient over the data, the way the framework recommends."""
        raise NotImplementedError


class TorchModel(Model):
    """An ``nn.Sequential`` with cross-entropy."""

    def __init__(self, problem: Network, device: str = "cpu") -> None:
        import torch

        layers: list[torch.nn.Module] = []
        for W, b in zip(problem.weights[::2], problem.weights[1::2], strict=True):
            layer = torch.nn.Linear(W.shape[1], W.shape[0])
            layer.weight.data, layer.bias.data = torch.tensor(W), torch.tensor(b)
            layers += [layer, torch.nn.Tanh()]
        self.device = device
        self.params = self.module = torch.nn.Sequential(*layers[:-1]).to(device)
        self.criterion = torch.nn.CrossEntropyLoss()
        self.batch = (torch.tensor(problem.x, device=device), torch.tensor(problem.y, device=device))
        self.weights = list(self.module.parameters())
        # Torch loads seconds of code at the first product of a process, which the first side would pay.
        once = torch.ones(1, requires_grad=True)
        torch.autograd.grad(torch.autograd.grad(once**3, once, create_graph=True), once, torch.ones(1))

    def predict(self, module: Any, batch: Any) -> Any:
        return module(batch[0])

    def output_loss(self, outputs: Any, batch: Any) -> Any:
        return self.criterion(outputs, batch[1])

    def loss(self, module: Any, batch: Any) -> Any:
        return self.output_loss(self.predict(module, batch), batch)

    def native(self, array: NDArray[Any]) -> Any:
        import torch

        return torch.tensor(array, device=self.device)

    def gradient(self) -> Any:
        import torch

        return torch.autograd.grad(self.loss(self.module, self.batch), self.weights)


class EagerTorchModel(TorchModel):
    """The same with a backend that never compiles, or always."""

    compiled = False

    def __init__(self, problem: Network, device: str = "cpu") -> None:
        from ihvp_torch import TorchBackend

        super().__init__(problem, device)
        self._backend = TorchBackend(self.params, compile=self.compiled)

    def objective(self, batch: Any = None, *, checks: bool = True) -> ihvp.Objective:
        data = self.batch if batch is None else batch
        return ihvp.Objective(self.loss, self.params, data, backend=self._backend, checks=checks)


class CompiledTorchModel(EagerTorchModel):
    """The same with a backend that compiles."""

    compiled = True


class JaxModel(Model):
    """A list of arrays with optax-style cross-entropy."""

    def __init__(self, problem: Network, device: str = "cpu") -> None:
        import jax
        import jax.numpy as jnp

        self._device = jax.devices("cpu" if device == "cpu" else "gpu")[0]
        self.params = [self.native(array) for array in problem.weights]
        self.batch = (self.native(problem.x), self.native(problem.y.astype(np.int32)))

        def predict(weights: Any, batch: Any) -> Any:
            x = batch[0]
            for W, b in zip(weights[:-2:2], weights[1:-2:2], strict=True):
                x = jnp.tanh(x @ W.T + b)
            return x @ weights[-2].T + weights[-1]

        def output_loss(outputs: Any, batch: Any) -> Any:
            scores = jax.nn.log_softmax(outputs)
            return -jnp.take_along_axis(scores, batch[1][:, None], axis=1).mean()

        def loss(weights: Any, batch: Any) -> Any:
            return output_loss(predict(weights, batch), batch)

        self.predict, self.output_loss, self.loss = predict, output_loss, loss
        self._gradient = jax.jit(jax.grad(loss))

    def native(self, array: NDArray[Any]) -> Any:
        import jax

        return jax.device_put(array, self._device)

    def gradient(self) -> Any:
        return self._gradient(self.params, self.batch)


class TensorFlowModel(Model):
    """A list of variables."""

    def __init__(self, problem: Network, device: str = "cpu") -> None:
        import tensorflow as tf

        self.params = [tf.Variable(array) for array in problem.weights]
        self.batch = (tf.constant(problem.x), tf.constant(problem.y))

        def loss(weights: Any, batch: Any) -> Any:
            x, y = batch
            for W, b in zip(weights[:-2:2], weights[1:-2:2], strict=True):
                x = tf.tanh(tf.matmul(x, W, transpose_b=True) + b)
            outputs = tf.matmul(x, weights[-2], transpose_b=True) + weights[-1]
            return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, outputs))

        @tf.function
        def one_gradient(batch: Any) -> Any:
            with tf.GradientTape() as tape:
                value = loss(self.params, batch)
            return tape.gradient(value, self.params)

        self.loss, self._gradient = loss, one_gradient

    def gradient(self) -> Any:
        return self._gradient(self.batch)


class NumdiffModel(Model):
    """Numpy arrays, and the gradient by hand."""

    def __init__(self, problem: Network, device: str = "cpu") -> None:
        self.params, self.batch = problem.weights, (problem.x, problem.y)

    def objective(self, batch: Any = None, *, checks: bool = True) -> ihvp.Objective:
        data = self.batch if batch is None else batch
        return ihvp.Objective(grad=gradient, params=self.params, data=data, checks=checks)

    def gradient(self) -> Any:
        return gradient(self.params, self.batch)


MODELS: dict[str, type[Model]] = {
    "torch": TorchModel,
    "torch-eager": EagerTorchModel,
    "torch-compiled": CompiledTorchModel,
    "jax": JaxModel,
    "tf": TensorFlowModel,
    "numdiff": NumdiffModel,
}
