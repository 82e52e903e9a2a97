"""Threads at once on one module, operator or objective: the answers of one thread, nothing left behind."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from torch import nn

import ihvp
from ihvp_torch import TorchBackend
from ihvp_torch._fallback import unfused_kernels

X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(6, 4).sin()
Y = torch.tensor([0, 1, 2, 0, 1, 2])


class Attention(nn.Module):
    """Its fused kernel has no second derivative, so that products change torch's switches."""

    def __init__(self):
        super().__init__()
        self.query, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.query(x).unsqueeze(1)
        h = torch.stack([h, h.flip(-1)], 2)
        return self.last(nn.functional.scaled_dot_product_attention(h, h, h).sum(2).squeeze(1))


def loss(m, batch):
    return nn.functional.cross_entropy(m(batch[0]), batch[1]) + 0.05 * sum(
        (p**2).sum() for p in m.parameters()
    )


def around(net):
    return lambda m, batch: nn.functional.cross_entropy(net(batch[0]), batch[1]) + 0.05 * (m.weight**2).sum()


def in_threads(*jobs, threads=4, repeats=4):
    """What went wrong when threads did the jobs at once."""
    expected, wrong = [job() for job in jobs], []

    def work(first):
        for i in range(first, first + repeats * len(jobs)):
            try:
                got = jobs[i % len(jobs)]()
                if not torch.allclose(got, expected[i % len(jobs)], rtol=1e-6, atol=1e-8):
                    wrong.append((i % len(jobs), got))
            except Exception as error:
                wrong.append((i % len(jobs), error))

    workers = [threading.Thread(target=work, args=(first,)) for first in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return wrong


@pytest.mark.parametrize("kind", ["linear", "batch norm", "attention", "scripted", "around"])
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_answers_are_those_of_one_thread_and_the_module_stays(kind):
    torch.manual_seed(0)
    net = {
        "linear": lambda: nn.Linear(4, 3),
        "batch norm": lambda: nn.Sequential(
            nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)
        ).eval(),
        "attention": Attention,
        "scripted": lambda: torch.jit.script(nn.Linear(4, 3)),
        "around": lambda: nn.Linear(4, 3),
    }[kind]().double()
    f = around(net) if kind == "around" else loss
    before = [(p, p.detach().clone()) for p in net.parameters()]
    objective = ihvp.Objective(f, net, (X, Y))
    H, v = ihvp.Hessian(objective), torch.linspace(-1, 1, objective.num_params, dtype=torch.float64)
    wrong = in_threads(
        lambda: H @ v,
        lambda: ihvp.solve(ihvp.Hessian(ihvp.Objective(f, net, (X, Y))), v, damping=1.0, progress=False).x,
        objective.per_example_gradients,
        lambda: ihvp.Hessian(ihvp.Objective(f, net, (X, Y), backend="numdiff")) @ v,
        lambda: torch.tensor(objective.value()),
    )
    assert not wrong
    assert all(p is q and p.equal(kept) for p, (q, kept) in zip(net.parameters(), before, strict=True))


def test_a_parameter_that_moves_moves_the_products_of_all_threads():
    net = nn.Linear(4, 3, dtype=torch.float64)
    matvec = TorchBackend(net).linearize(loss, net, (X, Y))
    v = torch.ones(15, dtype=torch.float64)
    for _ in range(5):
        with torch.no_grad():
            net.weight.mul_(1.5)
        expected = TorchBackend(net).hvp(loss, net, (X, Y), v)
        start, got = threading.Barrier(4), []

        def work(start=start, got=got):
            start.wait()
            got.append(matvec(v))

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert all(torch.allclose(x, expected) for x in got)


def test_forward_mode_takes_turns():
    # Torch refuses a second level of dual numbers, of whatever thread.
    net = nn.Linear(4, 3, dtype=torch.float64)
    backend, V = TorchBackend(net), torch.eye(15, dtype=torch.float64)[:, :3]
    assert not in_threads(lambda: backend.example_products(loss, net, (X, Y), V), repeats=10)


def test_switches_of_torch_are_as_before_when_the_last_thread_is_done():
    flags = torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.math_sdp_enabled
    before = [flag() for flag in flags]
    entered, leave = threading.Barrier(2), threading.Event()

    def outlast():
        with unfused_kernels():
            entered.wait()
            leave.wait()
            inside.append(torch.backends.cuda.flash_sdp_enabled())

    inside = []
    other = threading.Thread(target=outlast)
    with unfused_kernels():
        other.start()
        entered.wait()
    leave.set()
    other.join()
    assert inside == [False]
    assert [flag() for flag in flags] == before


def test_filters_of_warnings_are_as_before():
    net = nn.Linear(4, 3, dtype=torch.float64)
    before = list(warnings.filters)
    v = torch.ones(15, dtype=torch.float64)
    assert not in_threads(lambda: TorchBackend(net).example_products(loss, net, (X, Y), v))
    assert warnings.filters == before
