"""The loss itself, over plain arrays, weights in place and another framework."""

from __future__ import annotations

import numpy as np
import pytest

import ihvp
from ihvp_numdiff import InPlaceWeights
from ihvp_numdiff._backend import NumdiffBackend


def test_plain_arrays_go_to_the_loss():
    assert NumdiffBackend().value(lambda w, batch: (w * batch).sum(), np.ones(2), np.array([3.0, 4.0])) == 7.0


def test_values_for_weights_in_place_are_set_for_the_time_of_the_loss():
    held = np.array([3.0, 2.0])
    weights = InPlaceWeights(read=lambda: held, write=lambda values: np.copyto(held, values))
    backend = NumdiffBackend()
    shifted = backend.unflatten(np.array([5.0, 1.0]), weights)
    assert backend.value(lambda params, batch: held[0] ** 2 * held[1], shifted, None) == 25.0
    assert backend.value(lambda params, batch: held[0] ** 2 * held[1], weights, None) == 18.0


@pytest.mark.parametrize("by_gradient", [True, False])
def test_a_loss_of_another_framework_is_evaluated_by_its_backend(by_gradient):
    torch = pytest.importorskip("torch")
    w, x = torch.ones(2, dtype=torch.float64), np.array([[3.0, 4.0]])

    def loss(w, x):
        return torch.nn.functional.linear(x, w).sum()

    grad = (lambda w, x: torch.as_tensor(x).sum(dim=0)) if by_gradient else None
    with ihvp.use("numdiff"):
        assert ihvp.Objective(loss, w, x, grad=grad).value() == 7.0
