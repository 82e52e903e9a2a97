"""Solves and optima that autograd differentiates, against its own differences."""

from __future__ import annotations

import pytest
import torch

import ihvp

X = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
W = torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64)
V = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
TIGHT = ihvp.CG(rtol=1e-13)


def loss(w, batch):
    x, y = batch
    return torch.log(torch.cosh(x @ w["w"] - y)).mean() + 0.1 * (w["w"] ** 4).sum()


def ridge(w, h, batch):
    x, y = batch
    return ((x @ w["w"] - y) ** 2).mean() / 2 + (h["decay"] * w["w"] ** 2).sum() / 2


def fit(decay):
    return torch.linalg.solve(X.T @ X / 12 + torch.diag(decay.detach()), X.T @ Y / 12)


@pytest.fixture
def hessian():
    return ihvp.Hessian(ihvp.Objective(loss, {"w": W}, (X, Y)))


@pytest.mark.parametrize("v", [V, torch.stack([V, V**2], dim=1)], ids=["vector", "block"])
def test_gradcheck_of_a_solve(hessian, v):
    damping = torch.tensor(0.3, dtype=torch.float64)
    inputs = [leaf.clone().requires_grad_() for leaf in (W, v, damping)]

    def solve(w, v, damping):
        return ihvp.differentiable_solve(hessian, v, damping, TIGHT, params={"w": w})

    assert torch.autograd.gradcheck(solve, inputs)


def test_a_loss_goes_backward_to_the_parameters_of_a_module():
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1)).double()
    objective = ihvp.Objective(lambda net, b: ((net(b[0])[:, 0] - b[1]) ** 2).mean(), net, (X, Y))
    H, v = ihvp.Hessian(objective), torch.ones(11, dtype=torch.float64)

    def value():
        return (ihvp.differentiable_solve(H, v, 3.0, TIGHT, params=net) ** 2).sum()

    value().backward()
    for parameter in net.parameters():
        entry = parameter.data.view(-1)[:1]
        entry += 1e-5
        above = value().item()
        entry -= 2e-5
        below = value().item()
        entry += 1e-5
        assert parameter.grad.view(-1)[0].item() == pytest.approx((above - below) / 2e-5, rel=1e-5)


def test_gradcheck_of_an_optimum():
    decay = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64, requires_grad=True)
    hyper = {"decay": decay, "other": torch.ones(2, dtype=torch.float64)}
    problem = ihvp.InnerProblem(ridge, {"w": fit(decay)}, hyper, (X, Y), solver=TIGHT)

    def optimum(decay):  # its keys in another order
        return problem.optimum({"w": fit(decay)}, {"other": hyper["other"], "decay": decay})["w"]

    assert torch.autograd.gradcheck(optimum, [decay])
    (problem.optimum()["w"] ** 2).sum().backward()
    H = X.T @ X / 12 + torch.diag(decay.detach())
    exact = -fit(decay) * torch.linalg.solve(H, 2 * fit(decay))
    torch.testing.assert_close(decay.grad, exact, rtol=1e-8, atol=0)


def test_a_network_whose_examples_are_weighed_by_another():
    torch.manual_seed(0)
    net, weigher = torch.nn.Linear(3, 1).double(), torch.nn.Linear(3, 1).double()

    def inner(net, weigher, batch):
        x, y = batch
        return (
            torch.sigmoid(weigher(x)) * (net(x) - y[:, None]) ** 2
        ).mean() + 0.1 * net.weight.square().sum()

    def train():
        x = torch.cat([X, torch.ones(12, 1, dtype=torch.float64)], dim=1)
        weights = torch.sigmoid(weigher(X)).detach()
        A = x.T @ (weights * x) / 12 + 0.1 * torch.diag(
            torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
        )
        w = torch.linalg.solve(A, x.T @ (weights[:, 0] * Y) / 12)
        net.weight.data[0], net.bias.data[0] = w[:3], w[3]
        return (net(X[:4]) ** 2).sum().item()

    train()
    before = weigher.weight.detach().clone()
    found = ihvp.hypergradient(
        lambda net, weigher, x: (net(x) ** 2).sum(), inner, net, weigher, (X, Y), X[:4], solver=TIGHT
    )
    assert torch.equal(weigher.weight, before)
    changes = []
    for change in (1e-5, -2e-5):
        weigher.weight.data[0, 0] += change
        changes.append(train())
    assert found.gradient["weight"][0, 0].item() == pytest.approx((changes[0] - changes[1]) / 2e-5, rel=1e-5)


def test_a_second_derivative_is_refused(hessian):
    v = V.clone().requires_grad_()
    value = (ihvp.differentiable_solve(hessian, v, 1.0) ** 2).sum()
    (slope,) = torch.autograd.grad(value, v, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_other_matrices_are_constants():
    v = V.clone().requires_grad_()
    objective = ihvp.Objective(loss, {"w": W}, (X, Y))
    x = ihvp.differentiable_solve(ihvp.OPG(objective), v, 0.5, TIGHT)
    x.sum().backward()
    exact = ihvp.solve(ihvp.OPG(objective), torch.ones(3, dtype=torch.float64), damping=0.5, solver=TIGHT).x
    torch.testing.assert_close(v.grad, exact)
    as_numpy = ihvp.differentiable_solve(ihvp.OPG(objective), V.numpy(), torch.tensor(0.5), TIGHT)
    torch.testing.assert_close(as_numpy, ihvp.differentiable_solve(ihvp.OPG(objective), V, 0.5, TIGHT))
    with pytest.raises(ihvp.errors.InvalidOption, match=r"damping is .*a finite number"):
        ihvp.differentiable_solve(ihvp.OPG(objective), v, torch.ones(2))
    with pytest.raises(ihvp.errors.InvalidOption, match=r"params.*OPG"):
        ihvp.differentiable_solve(ihvp.OPG(objective), v, 0.5, params={"w": W})


CALLS = {
    "a product": lambda H, t: (H @ (t * V)).sum(),
    "a solve": lambda H, t: ihvp.solve(H, t * V, damping=1.0).x.sum(),
    "parameters": lambda H, t: ihvp.Objective(loss, {"w": t * W}, (X, Y)).gradient().sum(),
    "data": lambda H, t: H.objective.on((t * X, Y)).gradient().sum(),
    "what the loss refers to": lambda H, t: (
        ihvp.Objective(lambda w, b: t * loss(w, b), {"w": W}, (X, Y)).gradient().sum()
    ),
    "a solve to differentiate": lambda H, t: ihvp.differentiable_solve(H, t * V, 1.0).sum(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("transform", ["grad", "vmap"])
def test_what_torch_func_transforms_is_named(hessian, call, transform):
    t = torch.tensor(2.0, dtype=torch.float64)
    with pytest.raises(ihvp.errors.TracedValue, match=r"torch\.func"):
        getattr(torch.func, transform)(lambda t: call(hessian, t))(t[None] if transform == "vmap" else t)
