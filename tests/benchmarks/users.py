"""Products, scores and self-influence at users' sizes: P = 1e6 and 1e7, up to 50,000 made inputs.

Each way is timed once, with all that it prepares and checks, after a small run that loads what it needs.
Peers have a limit of time and of memory; what they do not finish is told as such, and the ratio is that to
the limit.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import resource
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import ihvp
from tests.benchmarks.kronfluence_task import kronfluence_task
from tests.benchmarks.rows import Case, Row, seconds
from tests.benchmarks.timing import once

_CLASSES, _BATCH, _QUERIES, _DAMPING = 10, 1000, 16, 0.01
# Of scores: peers form the gradients of a batch.
_SCORED, _SMALLER = 10_000, 100
_LIMIT, _MEMORY = 30, 8 << 30  # of a peer: seconds, and bytes beyond those of the process


def _multilayer(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 950),
        nn.ReLU(),
        nn.Linear(950, _CLASSES),
    )


class _Attention(nn.Module):
    """In single operations, as that of torch on the CPU has no forward derivative, which peers need."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.given, self.taken = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.given(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = parts[0], parts[1], parts[2]
        weights = (queries @ keys.mT / queries.shape[-1] ** 0.5).softmax(-1)
        return self.taken((weights @ values).transpose(1, 2).flatten(2))


class _Transformer(nn.Module):
    """Four layers of width 144 over tokens, and a linear layer on their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(100, 144)
        self.attention = nn.ModuleList(nn.Sequential(nn.LayerNorm(144), _Attention(144, 4)) for _ in range(4))
        self.wide = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(144), nn.Linear(144, 576), nn.GELU(), nn.Linear(576, 144))
            for _ in range(4)
        )
        self.head = nn.Linear(144, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        for attention, wide in zip(self.attention, self.wide, strict=True):
            x = x + attention(x)
            x = x + wide(x)
        return self.head(x.mean(dim=1))


@dataclass(frozen=True)
class _Task:
    """A network, made inputs of a shape, and how many of them the curvature is taken over."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    count: int

    @cached_property
    def net(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make()

    @cached_property
    def size(self) -> int:
        return sum(p.numel() for p in self.net.parameters())

    @cached_property
    def direction(self) -> Tensor:
        return torch.randn(self.size, generator=torch.Generator().manual_seed(1))

    def data(self, count: int, seed: int = 2) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        y = torch.randint(0, _CLASSES, (count,), generator=generator)
        if self.shape == (16,):
            return torch.randint(0, 100, (count, 16), generator=generator), y
        return torch.randn(count, *self.shape, generator=generator), y

    def batches(self, count: int) -> list[tuple[Tensor, Tensor]]:
        x, y = self.data(count)
        return list(zip(x.split(_BATCH), y.split(_BATCH), strict=True))

    def objective(self, count: int) -> ihvp.Objective:
        return ihvp.Objective(
            lambda outputs, batch: cross_entropy(outputs, batch[1]),
            self.net,
            self.data(count),
            predict=lambda net, batch: net(batch[0]),
        )

    def gradient(self, count: int) -> Any:
        weights = list(self.net.parameters())
        total: list[Tensor] | None = None
        for x, y in self.batches(count):
            parts = torch.autograd.grad(cross_entropy(self.net(x), y) * (len(y) / count), weights)
            total = [a + b for a, b in zip(total, parts, strict=True)] if total else list(parts)
        return total

    def product(self, kind: type[ihvp.Hessian] | type[ihvp.GaussNewton], count: int) -> Callable[[], Any]:
        operator = kind(self.objective(count))
        return lambda: operator @ self.direction

    def curvlinops(self, kind: str, count: int) -> Any:
        import curvlinops

        operator = getattr(curvlinops, kind)(
            self.net,
            nn.CrossEntropyLoss(),
            list(self.net.parameters()),
            self.batches(count),
            check_deterministic=False,
        )
        return operator @ self.direction

    def pydvl(self, count: int) -> Any:
        from pydvl.influence.torch.operator import HessianOperator

        data = DataLoader(TensorDataset(*self.data(count)), batch_size=_BATCH)
        return HessianOperator(self.net, nn.CrossEntropyLoss(), data).apply(self.direction)

    def influence(self, count: int) -> ihvp.Influence:
        objective = self.objective(count)
        return ihvp.Influence(objective, _DAMPING, curvature=ihvp.EKFAC(objective))

    def scores(self, count: int) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ihvp.influence.NotAtOptimum)
            return np.asarray(self.influence(count).scores(self.data(_QUERIES, 3), progress=False))

    def self_influence(self, count: int) -> Any:
        return np.asarray(self.influence(count).self_influence(progress=False))

    def kronfluence(self, what: str, count: int) -> Any:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import FactorArguments, ScoreArguments

        task, settings = kronfluence_task(), ScoreArguments(damping_factor=_DAMPING)
        net = prepare_model(copy.deepcopy(self.net), task)
        training, test = TensorDataset(*self.data(count)), TensorDataset(*self.data(_QUERIES, 3))
        with tempfile.TemporaryDirectory() as folder:
            analyzer = Analyzer("made", net, task, cpu=True, disable_tqdm=True, output_dir=folder)
            analyzer.fit_all_factors("ekfac", training, _SMALLER, factor_args=FactorArguments("ekfac"))
            if what == "self":
                analyzer.compute_self_scores(
                    "self", "ekfac", training, per_device_train_batch_size=_SMALLER, score_args=settings
                )
                return analyzer.load_self_scores("self")["all_modules"]
            analyzer.compute_pairwise_scores(
                "scores",
                "ekfac",
                test,
                training,
                per_device_query_batch_size=_QUERIES,
                per_device_train_batch_size=_SMALLER,
                score_args=settings,
            )
            return analyzer.load_pairwise_scores("scores")["all_modules"]

    def pydvl_scores(self, count: int) -> Any:
        from pydvl.influence.torch import EkfacInfluence

        net = copy.deepcopy(self.net)  # it adds to the gradients that the parameters hold
        influence = EkfacInfluence(net, update_diagonal=True, hessian_regularization=_DAMPING)
        batches = DataLoader(TensorDataset(*self.data(count)), _SMALLER)
        influence.fit(batches)
        products = influence.influence_factors(*self.data(_QUERIES, 3))
        return torch.cat([influence.influences_from_factors(products, *batch) for batch in batches], dim=1)


_TASKS = (
    _Task("784-1024-200-10", partial(_multilayer, 784, 1024, 200, _CLASSES), (784,), 50_000),
    _Task("a convolutional network", _convolutional, (3, 16, 16), 10_000),
    _Task("a transformer of 16 tokens", _Transformer, (16,), 1_000),
    _Task("784-2800-2700-10", partial(_multilayer, 784, 2800, 2700, _CLASSES), (784,), 50_000),
)


def measure(device: str) -> list[Row]:
    """The rows of all networks."""
    if device != "cpu":
        return []
    rows = [row for task in _TASKS for row in _products(task)]
    return rows + _scores(replace(_TASKS[0], count=_SCORED))


def _products(task: _Task) -> list[Row]:
    gradient, large = task.gradient, task.size > 5e6
    hessian, gauss_newton = (partial(task.product, kind) for kind in (ihvp.Hessian, ihvp.GaussNewton))
    peers: dict[str, dict[str, Callable[[int], Any]]] = {
        "H v": {"curvlinops": partial(task.curvlinops, "HessianLinearOperator"), "pyDVL": task.pydvl},
        "G v": {"curvlinops": partial(task.curvlinops, "GGNLinearOperator")},
    }
    if large:  # what is slower elsewhere
        peers = {"H v": {"curvlinops": peers["H v"]["curvlinops"]}, "G v": {}}
    rows, _ = [], gradient(20)
    alone = once(partial(gradient, task.count))
    for name, ours in (("H v", hessian), ("G v", gauss_newton)):
        what = f"{name}, {task.name}, P = {task.size:,}, N = {task.count:,}, once"
        ours(20)()
        product = ours(task.count)
        first = once(product)
        row = partial(Row, what=what, ours=f"{seconds(first)}, first use")
        # Of minutes, once is enough.
        last, which = (first, "first use") if large else (once(product), "the second time")
        repeated = f"{seconds(last)}, {which}"
        rows.append(
            Row(what=what, ours=repeated, peer="one gradient", beside=seconds(alone), value=last / alone)
        )
        for peer, theirs in peers[name].items():
            rows.append(_beside(row, first, peer, theirs, task.count))
    return rows


def _scores(task: _Task) -> list[Row]:
    ways: dict[str, tuple[Callable[[int], Any], dict[str, Callable[[int], Any]]]] = {
        f"EK-FAC scores of {_QUERIES} queries": (
            task.scores,
            {"kronfluence": partial(task.kronfluence, "scores"), "pyDVL": task.pydvl_scores},
        ),
        "EK-FAC self-influence": (task.self_influence, {"kronfluence": partial(task.kronfluence, "self")}),
    }
    rows = []
    for name, (ours, peers) in ways.items():
        ours(40)
        time = once(partial(ours, task.count))
        what = f"{name}, {task.name}, P = {task.size:,}, N = {task.count:,}, once"
        row = partial(Row, what=what, ours=seconds(time))
        rows += [_beside(row, time, peer, theirs, task.count) for peer, theirs in peers.items()]
    return rows


def _beside(row: Callable[..., Row], time: float, peer: str, theirs: Callable[[int], Any], count: int) -> Row:
    """A peer's row, with the limit in place of what it does not finish."""
    theirs(40)
    try:
        with _within(_LIMIT, _MEMORY):
            other = once(partial(theirs, count))
    except TimeoutError:
        return row(peer=peer, beside=f"not in {_LIMIT} s", value=time / _LIMIT)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return row(peer=peer, beside=f"not in {_MEMORY >> 30} GiB", value=math.nan)
    return row(peer=peer, beside=seconds(other), value=time / other, rival=True)


@contextlib.contextmanager
def _within(limit: int, memory: int) -> Iterator[None]:
    """TimeoutError after so many seconds, and no more memory than so many bytes beyond what is mapped."""

    def late(*_: Any) -> None:
        raise TimeoutError

    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, before[1]))
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


CASE = Case("users", "At users' sizes", {"torch": measure}, often=False)
