"""A loss gets a replica of the module, which stays untouched; where that will not do, the answer is right."""

from __future__ import annotations

import gc
import types
import weakref

import pytest
import torch
from torch import nn

import ihvp
from ihvp.errors import ChangedInPlace
from ihvp_torch import TorchBackend, _program
from ihvp_torch._parameters import parameters_of

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated")
X = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3).sin()


class Net(nn.Module):
    def __init__(self, *extra):
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)
        self.extra = nn.Sequential(*extra)
        self.double()

    def forward(self, x):
        return self.last(self.extra(torch.tanh(self.first(x))))


class Tied(Net):
    def __init__(self):
        super().__init__(nn.Linear(3, 3))
        self.extra[0].weight = self.first.weight


class Recurrent(Net):
    def __init__(self):
        super().__init__()
        self.extra = nn.LSTM(3, 3, batch_first=True).double()

    def forward(self, x):
        return self.last(self.extra(torch.tanh(self.first(x)).unsqueeze(1))[0][:, 0])


class InAList(Net):
    def __init__(self):
        super().__init__()
        self.all = [self.first, self.last]

    def forward(self, x):
        return self.all[1](torch.tanh(self.all[0](x)))


class OfAnotherForward(Net):
    def __init__(self):
        super().__init__()
        self.forward = types.MethodType(Net.forward, self)


class Slotted(Net):
    __slots__ = ("scale",)

    def __init__(self):
        super().__init__()
        self.scale = 2.0

    def forward(self, x):
        return self.scale * super().forward(x)


class Remembering(Net):
    def forward(self, x):
        self.seen = super().forward(x)
        self.first.count = getattr(self.first, "count", 0) + 1
        return self.seen


class KnowsItself(Net):
    def __init__(self):
        super().__init__()
        self.me = weakref.ref(self)

    def forward(self, x):
        assert self.me() is self
        return super().forward(x)


def normalised(wrap):
    net = Net()
    wrap(net.first)
    return net.eval()


def loss(m, batch):
    return m(batch).square().mean() + 0.1 * sum((p**3).sum() for p in m.parameters())


def around(net):
    """A loss whose first term sees the module around its argument, and the second one does not."""
    return lambda m, batch: net(batch).square().mean() + 0.1 * sum((p**3).sum() for p in m.parameters())


def hooked():
    net, seen = Net(), {}
    net.first.register_forward_hook(lambda module, inputs, output: seen.__setitem__(module, output))

    def loss_of_seen(m, batch):
        m(batch)
        return seen[net.first].square().mean() + m(batch).square().sum()

    return net, loss_of_seen


def of(kind, *args):
    net = kind(*args)
    return net, loss


def closed_over(*extra):
    net = Net(*extra)
    return net, around(net)


REPLICATED = {
    "plain": lambda: of(Net),
    "tied": lambda: of(Tied),
    "batch norm in training": lambda: of(Net, nn.BatchNorm1d(3)),
    "recurrent": lambda: of(Recurrent),
    "old weight norm": lambda: of(normalised, nn.utils.weight_norm),
    "weight norm": lambda: of(normalised, nn.utils.parametrizations.weight_norm),
    "spectral norm": lambda: of(normalised, nn.utils.parametrizations.spectral_norm),
    "attributes written": lambda: of(Remembering),
}
IN_PLACE = {
    "closed over": closed_over,
    "closed over, batch norm in training": lambda: closed_over(nn.BatchNorm1d(3)),
    "hooked": hooked,
    "scripted": lambda: of(lambda: torch.jit.script(Net())),
    "in a list": lambda: of(InAList),
    "forward as an attribute": lambda: of(OfAnotherForward),
    "slots": lambda: of(Slotted),
    "asks who it is": lambda: of(KnowsItself),
}


@pytest.fixture(params=[*REPLICATED, *IN_PLACE])
def case(request):
    torch.manual_seed(0)
    return (REPLICATED | IN_PLACE)[request.param]()


def gradient_by_backward(loss, net):
    state = {name: value.clone() for name, value in net.state_dict().items()}
    net.zero_grad()
    loss(net, X).backward()
    flat = torch.cat([p.grad.reshape(-1) for p in net.parameters()])
    net.zero_grad()
    net.load_state_dict(state)
    return flat


def hessian_product_by_differences(loss, net, v):
    w, step = nn.utils.parameters_to_vector(net.parameters()).detach(), 1e-5
    sides = []
    for sign in (1, -1):
        nn.utils.vector_to_parameters(w + sign * step * v, net.parameters())
        sides.append(gradient_by_backward(loss, net))
    nn.utils.vector_to_parameters(w, net.parameters())
    return (sides[0] - sides[1]) / (2 * step)


def test_derivatives_are_those_of_the_module_itself(case):
    net, f = case
    expected = gradient_by_backward(f, net)
    v = torch.linspace(-1, 1, len(expected), dtype=torch.float64)
    product = hessian_product_by_differences(f, net, v)
    before = [(p, p.detach().clone()) for p in net.parameters()]
    buffers = [(b, b.clone()) for b in net.buffers()]
    backend = TorchBackend(net)
    torch.testing.assert_close(backend.value(f, net, X), f(net, X).detach())
    for b, kept in buffers:  # f itself has moved them
        b.copy_(kept)
    torch.testing.assert_close(backend.hvp(f, net, X, v), product, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(backend.grad(f, net, X), expected)
    torch.testing.assert_close(backend.linearize(f, net, X)(v), product, rtol=1e-6, atol=1e-8)
    assert all(p is q and p.equal(kept) for p, (q, kept) in zip(net.parameters(), before, strict=True))
    assert all(b is c and b.equal(kept) for b, (c, kept) in zip(net.buffers(), buffers, strict=True))


@pytest.mark.parametrize("name", ["closed over", "hooked", "in a list"])
def test_rows_come_first(name):
    torch.manual_seed(0)
    net, f = IN_PLACE[name]()
    rows = TorchBackend(net).per_example_grads(f, net, X)
    for i, row in enumerate(rows):
        torch.testing.assert_close(
            row,
            torch.cat([g.reshape(-1) for g in torch.autograd.grad(f(net, X[i : i + 1]), net.parameters())]),
        )


@pytest.mark.parametrize("name", REPLICATED)
def test_module_is_the_same_while_the_loss_runs(name):
    net, f = REPLICATED[name]()
    state = [*net.parameters(), *net.buffers()]
    attributes = {part: dict(vars(part)) for part in net.modules()}
    bits = [tensor.detach().clone() for tensor in state]
    seen = []

    def watching(m, batch):
        value = f(m, batch)
        now = [*net.parameters(), *net.buffers()]
        seen.append(all(a is b and a.equal(c) for a, b, c in zip(now, state, bits, strict=True)))
        return value

    backend = TorchBackend(net)
    moved = backend.unflatten(2 * backend.flatten(net), net)
    for params in (net, moved):
        backend.grad(watching, params, X)
        backend.hvp(watching, params, X, backend.flatten(net))
        backend.value(watching, params, X)
    assert all(seen)
    assert not parameters_of(net).slots.in_place
    # Also what the module writes to itself.
    assert all(vars(part).keys() == before.keys() for part, before in attributes.items())


def test_compiled_products_of_a_loss_that_reaches_around(monkeypatch):
    monkeypatch.setattr(_program, "_lower", lambda module, inputs: module)  # traced only, which is quick
    torch.manual_seed(0)
    net = nn.Linear(3, 1, dtype=torch.float64)
    f = lambda m, batch: (net(batch).tanh() ** 2).mean() + (m.weight**4).sum()  # noqa: E731
    v = torch.ones(4, dtype=torch.float64)
    expected = hessian_product_by_differences(f, net, v)
    product = TorchBackend(net, compile=True).hvp(f, net, X, v)
    torch.testing.assert_close(product, expected, rtol=1e-6, atol=1e-8)


def test_errors_of_a_loss_are_its_own_and_leave_nothing_behind():
    net = Net()

    def failing(m, batch):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        TorchBackend(net).grad(failing, net, X)
    assert not parameters_of(net).slots.in_place


def test_module_is_not_kept_alive():
    net = Net()
    TorchBackend(net).grad(loss, net, X)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def test_a_step_of_training_in_the_midst_of_a_call_is_told():
    net = Net()

    def stepping(m, batch):
        value = loss(m, batch)
        with torch.no_grad():
            net.last.weight.add_(1.0)
        return value

    with pytest.raises(ChangedInPlace, match="trains the model"):
        TorchBackend(net).grad(stepping, net, X)


def test_data_that_requires_a_gradient_is_a_leaf_of_its_own():
    net, z = Net(), X.clone().requires_grad_()
    data = 1 * z
    plain = ihvp.Objective(loss, net, X)
    objective = ihvp.Objective(loss, net, data)
    torch.testing.assert_close(objective.gradient(), plain.gradient())
    rows = objective.per_example_gradients()
    assert not rows.requires_grad
    torch.testing.assert_close(rows, plain.per_example_gradients())
    v = torch.ones(plain.num_params, dtype=torch.float64)
    torch.testing.assert_close(ihvp.Hessian(objective) @ v, ihvp.Hessian(plain) @ v)
    data.sum().backward()  # its graph is whole
    torch.testing.assert_close(z.grad, torch.ones_like(X))


def test_a_loss_may_differentiate_by_its_data():
    net = Net()

    def slope(m, batch):
        (by_input,) = torch.autograd.grad(m(batch).sum(), batch, create_graph=True)
        return by_input.square().mean()

    x = X.clone().requires_grad_()
    torch.testing.assert_close(TorchBackend(net).grad(slope, net, x)[:-2], gradient_of(slope, net, x)[:-2])
    assert x.grad is None


def gradient_of(f, net, x):
    parts = torch.autograd.grad(f(net, x), list(net.parameters()), allow_unused=True)
    zeros = (torch.zeros_like(p) for p in net.parameters())
    return torch.cat([(z if g is None else g).reshape(-1) for g, z in zip(parts, zeros, strict=True)])


def test_read_only_arrays_are_data():
    x = X.numpy().copy()
    x.flags.writeable = False
    net = Net()
    torch.testing.assert_close(TorchBackend(net).grad(loss, net, x), TorchBackend(net).grad(loss, net, X))
