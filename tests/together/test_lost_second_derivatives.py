"""Where a framework's second derivative is lost, differences of its gradient are right."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

import ihvp

torch = pytest.importorskip("torch")


class Softplus(torch.autograd.Function):
    """Its backward pass takes a slope that the forward pass computed for a constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = torch.sigmoid(x)
        return torch.nn.functional.softplus(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.slope


def test_numdiff_is_right_for_a_function_whose_second_derivative_is_lost():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((30, 3)), np.array([0.3, -0.2, 0.5])
    loss = lambda p, batch: (Softplus.apply(batch[0] @ p["w"]) ** 2).mean()  # noqa: E731
    params = {"w": torch.tensor(w, requires_grad=True)}
    objective = ihvp.Objective(loss, params, (torch.from_numpy(x),), backend="numdiff")
    slope = 1 / (1 + np.exp(-x @ w))
    curvature = 2 * (slope**2 + np.logaddexp(0, x @ w) * slope * (1 - slope))
    hessian = (x.T * curvature) @ x / len(x)
    assert_allclose(ihvp.Hessian(objective).to_dense(), hessian, rtol=0, atol=1e-7)
    solution = ihvp.solve(ihvp.Hessian(objective), np.ones(3), damping=1.0)
    assert_allclose(solution.x, np.linalg.solve(hessian + np.eye(3), np.ones(3)), rtol=1e-5)
