"""EK-FAC's set-up beside what it is made of: gradients by the outputs of layers, and products of matrices.

For N examples, S places, V cotangents of an example's outputs (one with ``"mc"``, all with ``"exact"``) and
each layer, the operations that it needs are

=========================================  =====================================================
two passes, of one forward pass and V      2 N S d_in d_out (1 + V) each, but for the lowest layers
backward passes to what layers give
moments                                    2 N S (d_in² + V d_out²)
eigenvectors                               about 9 (d_in³ + d_out³)
rotations                                  2 N S (d_in² + V d_out²), or 2 N V d_in² d_out of products
squares                                    2 N d_in d_out; 2 N S V d_in d_out where places share weights
=========================================  =====================================================

The bare loop does just that with hooks of torch. Times are seconds of one processor, which a busy machine
does not stretch.
"""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot, unfold

import ihvp
from tests.benchmarks.memory import peak_of, resident
from tests.benchmarks.rows import Case, Row, seconds

_CLASSES = 10


class _Residual(nn.Module):
    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, wider, 3, stride, 1), nn.Conv2d(wider, wider, 3, 1, 1)
        self.short = nn.Conv2d(channels, wider, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.short(x))


def _multilayer(count: int) -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, _CLASSES)
    )
    return net, torch.randn(count, 784)


def _residual(count: int) -> tuple[nn.Module, Tensor]:
    blocks = [
        _Residual(*sizes) for sizes in ((32, 32, 2), (32, 64, 2), (64, 128, 2), (128, 128, 1), (128, 128, 1))
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, _CLASSES)]
    return nn.Sequential(nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU(), *blocks, *head), torch.randn(count, 3, 32, 32)


# Examples, and examples of a batch.
_NETWORKS: dict[str, tuple[Callable[[int], tuple[nn.Module, Tensor]], int, int]] = {
    "784-512-512-10": (_multilayer, 20_000, 1000),
    "residual, 32 × 32": (_residual, 200, 100),
}


class _Task:
    def __init__(self, name: str, count: int | None = None) -> None:
        torch.manual_seed(0)
        make, self.count, self.size = _NETWORKS[name]
        self.count = count or self.count
        self.net, self.x = make(self.count)
        self.y = torch.randint(0, _CLASSES, (self.count,))
        self.layers = [m for m in self.net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]

    def ours(self, fisher: Any) -> ihvp.EKFAC:
        objective = ihvp.Objective(
            lambda outputs, batch: cross_entropy(outputs, batch[1]),
            self.net,
            (self.x, self.y),
            batch_size=self.size,
            predict=lambda net, batch: net(batch[0]),
        )
        return ihvp.EKFAC(objective, fisher=fisher)

    def gradients(self, fisher: str) -> None:
        """Two passes, without any product of matrices."""
        for _ in range(2):
            for outputs, _, given in self._batches():
                for root in _roots(outputs, fisher):
                    torch.autograd.grad(outputs, given, root, retain_graph=True)

    def bare(self, fisher: str) -> list[Tensor]:
        moments = [[0.0, 0.0, 0.0] for _ in self.layers]
        for outputs, inputs, given in self._batches():
            for sums, layer, a in zip(moments, self.layers, inputs, strict=True):
                rows = _inputs(layer, a).flatten(0, 1)
                sums[0] = sums[0] + rows.T @ rows
            for root in _roots(outputs, fisher):
                pulled = torch.autograd.grad(outputs, given, root, retain_graph=True)
                for sums, g in zip(moments, pulled, strict=True):
                    rows = _gradients(g).flatten(0, 1)
                    sums[1] = sums[1] + rows.T @ rows
        bases = [[torch.linalg.eigh(moment)[1] for moment in sums[:2]] for sums in moments]
        for outputs, inputs, given in self._batches():
            rotated = [
                _inputs(layer, a) @ basis[0]
                for layer, a, basis in zip(self.layers, inputs, bases, strict=True)
            ]
            for root in _roots(outputs, fisher):
                pulled = torch.autograd.grad(outputs, given, root, retain_graph=True)
                for sums, a, g, basis in zip(moments, rotated, pulled, bases, strict=True):
                    g = _gradients(g) @ basis[1]
                    alone = g.shape[1] == 1
                    squares = (g[:, 0] ** 2).T @ a[:, 0] ** 2 if alone else ((g.mT @ a) ** 2).sum(0)
                    sums[2] = sums[2] + squares
        return [sums[2] for sums in moments]

    def _batches(self) -> Iterator[tuple[Tensor, list[Tensor], list[Tensor]]]:
        inputs: dict[nn.Module, Tensor] = {}
        given: dict[nn.Module, Tensor] = {}

        def seen(layer: nn.Module, arguments: tuple[Tensor], output: Tensor) -> None:
            inputs[layer], given[layer] = arguments[0].detach(), output

        handles = [layer.register_forward_hook(seen) for layer in self.layers]
        for x in self.x.split(self.size):
            outputs = self.net(x)
            yield outputs, [inputs[layer] for layer in self.layers], [given[layer] for layer in self.layers]
        for handle in handles:
            handle.remove()

    def batch_bytes(self, fisher: str) -> int:
        """What autograd keeps of one batch, and the derivatives by what layers give."""
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            _, _, given = next(iter(self._batches()))
        parameters = {p.untyped_storage().data_ptr() for p in self.net.parameters()}
        activations = sum(size for place, size in kept.items() if place not in parameters)
        return activations + sum(g.nbytes for g in given) * (_CLASSES if fisher == "exact" else 1)


def _roots(outputs: Tensor, fisher: str) -> list[Tensor]:
    p = outputs.detach().softmax(1)
    scale = len(p) ** -0.5
    if fisher == "mc":
        return [(one_hot(torch.multinomial(p, 1)[:, 0], _CLASSES) - p) * scale]
    units = torch.eye(_CLASSES)
    return [p[:, c, None].sqrt() * (units[c] - p) * scale for c in range(_CLASSES)]


def _inputs(layer: nn.Module, a: Tensor) -> Tensor:
    """``(B, S, d_in)``, a 1 for the bias."""
    if isinstance(layer, nn.Conv2d):
        a = unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT
    else:
        a = a[:, None]
    return torch.cat([a, a.new_ones(*a.shape[:2], 1)], dim=2)


def _gradients(g: Tensor) -> Tensor:
    return g.flatten(2).mT if g.ndim > 2 else g[:, None]


def _cpu_seconds(call: Callable[[], Any]) -> float:
    gc.collect()
    start = time.process_time()
    call()
    return time.process_time() - start


def measure(device: str) -> list[Row]:
    """The time of each way on one thread, and the memory in a process of its own."""
    return [row for name in _NETWORKS for fisher in ("mc", "exact") for row in _rows(name, fisher)]


def _rows(name: str, fisher: str) -> list[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        task, small = _Task(name), _Task(name, 20)
        for way in (small.ours, small.bare):  # what is loaded once
            way(fisher)
        ours, bare, gradients = (
            _cpu_seconds(partial(way, fisher)) for way in (task.ours, task.bare, task.gradients)
        )
    finally:
        torch.set_num_threads(threads)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak, factors, batch = pool.apply(_memory, (name, fisher))
    what = f"EK-FAC, {fisher}, {name}, N = {task.count:,}"

    def row(peer: str, other: float, high: float | None) -> Row:
        return Row(
            what=f"set-up, {what}",
            ours=seconds(ours),
            peer=peer,
            beside=seconds(other),
            value=ours / other,
            high=high,
        )

    return [
        row("bare gradients and products", bare, 1.5),
        row("bare gradients", gradients, None),
        Row(
            what=f"peak memory, {what}",
            ours=f"{peak / 2**20:.0f} MiB",
            peer="factors and one batch",
            beside=f"{factors / 2**20:.0f} + {batch / 2**20:.0f} MiB",
            value=peak / (factors + batch),
            high=1.3,
        ),
    ]


def _memory(name: str, fisher: str) -> tuple[int, int, int]:
    """The peak of a set-up beyond the model and its data, and the bytes of the factors and of one batch."""
    torch.set_num_threads(1)
    _Task(name, 20).ours(fisher)
    task = _Task(name, 2 * _NETWORKS[name][2])
    found: list[ihvp.EKFAC] = []
    gc.collect()
    before = resident()
    peak = peak_of(lambda: found.append(task.ours(fisher))) - before
    parts = [part for block in found[0].blocks for part in (block.q_in, block.q_out, block.values)]  # type: ignore[attr-defined]
    return peak, sum(part.nbytes for part in parts), task.batch_bytes(fisher)


CASE = Case("factors", "The set-up of EK-FAC", {"torch": measure}, often=False)
