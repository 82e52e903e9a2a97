r"""The problem of the demo and of ``loo``: softmax regression on scikit-learn's handwritten digits.

For weights W ``(65, 10)``, pixels :math:`x_n` and label :math:`y_n`, a digit's loss is the cross-entropy

.. math:: C_n(W) = -\log \mathrm{softmax}(x_n^T W)_{y_n}

and the model minimises the objective :math:`\frac{1}{N} \sum_n m_n C_n(W) + \frac{\lambda}{2} \|W\|^2` with
:math:`m_n = 1`. Taking digit n out of the training set sets its mass :math:`m_n` to 0; N and the regulariser
stay, as in the derivation of the influence formula.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ihvp.backend import BackendPlugin
from ihvp.experiments import choice
from ihvp.objective import Objective
from ihvp.packages import required

Batch: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Images ``(n, 65)``, one-hot labels ``(n, 10)`` and masses ``(n,)``."""

TRAINING_DIGITS = 1500
DECAY = 0.01
"""λ: the strength of the regulariser."""


@dataclass(frozen=True)
class Digits:
    """Images ``(n, 65)`` of 8×8 pixels in [0, 1] and a constant 1 for the bias, and labels ``(n,)``."""

    images: NDArray[np.float64]
    labels: NDArray[np.int64]

    def batch(self, masses: NDArray[np.float64] | None = None) -> Batch:
        """The digits as the loss takes them; every mass is 1 by default."""
        return self.images, np.eye(10)[self.labels], np.ones(len(self.labels)) if masses is None else masses

    @property
    def pictures(self) -> NDArray[np.float64]:
        """The pixels of all digits, ``(n, 8, 8)``."""
        return self.images[:, :64].reshape(-1, 8, 8)

    def picture(self, index: int) -> NDArray[np.float64]:
        """The pixels of one digit, ``(8, 8)``."""
        return np.asarray(self.pictures[index])


def load() -> tuple[Digits, Digits]:
    """The first 1,500 digits for training and the other 297 for testing."""
    datasets = required("sklearn.datasets", "load_digits", "pip install 'ihvp[demo]'", "scikit-learn")
    pixels, labels = datasets.load_digits(return_X_y=True)
    images = np.column_stack([pixels / 16, np.ones(len(pixels))])
    first, rest = slice(TRAINING_DIGITS), slice(TRAINING_DIGITS, None)
    return Digits(images[first], labels[first]), Digits(images[rest], labels[rest])


# One function for all objectives: a backend that compiles finds it again.
@functools.cache
def cross_entropy(xp: Any) -> Callable[[Any, Batch], Any]:
    """The mean of ``m_n C_n`` over a batch, in the arrays of the namespace ``xp``."""

    def loss(params: Any, batch: Batch) -> Any:
        images, targets, masses = batch
        scores = xp.matmul(images, params["weights"])
        scores = scores - xp.max(scores, axis=1, keepdims=True)
        losses = xp.log(xp.sum(xp.exp(scores), axis=1)) - xp.sum(scores * targets, axis=1)
        return xp.mean(masses * losses)

    return loss


@functools.cache
def regularised(xp: Any) -> Callable[[Any, Batch], Any]:
    """:func:`cross_entropy` and the regulariser ``λ/2 ‖W‖²``."""
    data_loss = cross_entropy(xp)

    def loss(params: Any, batch: Batch) -> Any:
        weights = params["weights"]
        return data_loss(params, batch) + DECAY / 2 * xp.sum(weights * weights)

    return loss


def regularised_gradient(params: Any, batch: Batch) -> dict[str, NDArray[np.float64]]:
    """The gradient of :func:`regularised` in closed form."""
    return {"weights": cross_entropy_gradient(params, batch)["weights"] + DECAY * params["weights"]}


def cross_entropy_gradient(params: Any, batch: Batch) -> dict[str, NDArray[np.float64]]:
    """The gradient of :func:`cross_entropy` in closed form, for backends that differentiate gradients."""
    images, targets, masses = batch
    errors = masses[:, None] * (probabilities(params["weights"], images) - targets)
    return {"weights": images.T @ errors / len(images)}


def probabilities(weights: NDArray[np.float64], images: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the model says of each image, ``(n, 10)``."""
    scores = images @ weights
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


class Problem:
    """The digits' losses in one backend.

    ``data_loss`` is the cross-entropy alone, without the regulariser, as ``Objective`` takes a loss or
    gradient.
    """

    shape = (65, 10)

    def __init__(self, plugin: BackendPlugin) -> None:
        self._name, self._dialect = plugin.name, choice.dialect(plugin)
        if plugin.differentiates == "loss":
            self._terms: dict[str, Any] = {"loss": regularised(self._dialect.xp)}
            self.data_loss: Any = cross_entropy(self._dialect.xp)
        else:
            self._terms = {"grad": regularised_gradient}
            self.data_loss = cross_entropy_gradient

    def objective(self, weights: NDArray[Any], batch: Batch) -> Objective:
        """The objective over the batch at the given weights ``(650,)``."""
        params = self._dialect.parameters({"weights": weights.reshape(self.shape)})
        return Objective(params=params, data=batch, backend=self._name, **self._terms)
