"""Influence by Kronecker factors beside an exact Gauss–Newton matrix: what each costs, and what it foretells.

The task: 1,500 digits, 297 queries, a network 64-256-256-10 with ReLU, P = 85,002, trained by SGD with
momentum 0.9, learning rate 0.05 and weight decay 1e-3 for 30 epochs in batches of 50; damping 0.01. The
linear datamodelling score (LDS; Park et al., "TRAK", ICML 2023) is the mean over the queries of the rank
correlation between the sum of the scores of a random half of the training data and the loss after training on
that half alone, twice from other seeds, over 24 halves.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from curvlinops import EKFACLinearOperator, KFACInverseLinearOperator
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

import ihvp
from tests.benchmarks.rows import Case, Row, seconds
from tests.benchmarks.timing import in_turns

_TRAINING, _HALVES, _RUNS, _DAMPING = 1500, 24, 2, 0.01


def measure(device: str) -> list[Row]:
    """Times in turns, and the LDS of each way."""
    task = _Task()
    ways: dict[str, Callable[[], Any]] = {
        "EK-FAC": functools.partial(task.ours, ihvp.EKFAC),
        "K-FAC": functools.partial(task.ours, ihvp.KFAC),
        "curvlinops": task.curvlinops,
        "dot products": task.dots,
        "Gauss–Newton, rtol 0.1": functools.partial(task.exact, ihvp.Auto(rtol=0.1)),
    }
    times = in_turns(ways, budget=60.0)
    slow = {
        "Gauss–Newton, rtol 1e-2": functools.partial(task.exact, ihvp.Auto(rtol=1e-2)),
        "block CG, rtol 1e-2": functools.partial(task.exact, ihvp.CG(rtol=1e-2)),
    }
    exact = in_turns(slow, budget=1.0, rounds=(1, 1))
    losses, halves = task.retrained()
    scores = {name: np.asarray(way()) for name, way in (ways | slow).items()}
    found = {name: _lds(values, losses, halves) for name, values in scores.items()}
    lds = {name: float(values.mean()) for name, values in found.items()}
    agreement = np.linalg.norm(scores["EK-FAC"] - scores["curvlinops"]) / np.linalg.norm(scores["curvlinops"])
    what = "scores of 297 digits on 1,500, P = 85,002"

    def time_row(name: str, peer: str, high: float | None) -> Row:
        return Row(
            what=f"{name}, {what}",
            ours=seconds(times[name]),
            peer=peer,
            beside=seconds(times[peer]),
            value=times.ratio(name, peer),
            high=high,
            rival=peer == "curvlinops",
        )

    def lds_row(name: str, low: float | None) -> Row:
        return Row(
            what=f"{name}, LDS over {_HALVES} halves",
            ours=f"{lds[name]:.3f}",
            peer="curvlinops' EK-FAC",
            beside=f"{lds['curvlinops']:.3f}",
            value=lds[name],
            low=low,
            high=None if low is None else 1.0,
        )

    return [
        time_row("EK-FAC", "curvlinops", 0.5),
        time_row("K-FAC", "curvlinops", None),
        time_row("EK-FAC", "dot products", None),
        Row(
            what=f"EK-FAC, difference from curvlinops' {what}",
            ours="",
            peer="relative",
            beside="",
            value=float(agreement),
            high=1e-3,
        ),
        lds_row("EK-FAC", lds["curvlinops"] - 0.01),
        lds_row("K-FAC", None),
        lds_row("dot products", None),
        time_row("Gauss–Newton, rtol 0.1", "curvlinops", None),
        lds_row("Gauss–Newton, rtol 0.1", None),
        Row(
            what=f"Gauss–Newton, rtol 1e-2, {what}",
            ours=seconds(exact["Gauss–Newton, rtol 1e-2"]),
            peer="block CG",
            beside=seconds(exact["block CG, rtol 1e-2"]),
            value=exact.ratio("Gauss–Newton, rtol 1e-2", "block CG, rtol 1e-2"),
            high=0.5,
        ),
        lds_row("Gauss–Newton, rtol 1e-2", 0.55),
    ]


class _Task:
    def __init__(self) -> None:
        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))
        x = torch.tensor(digits.data / 16, dtype=torch.float32)[order]
        y = torch.tensor(digits.target)[order]
        self.training = x[:_TRAINING], y[:_TRAINING]
        self.test = x[_TRAINING:], y[_TRAINING:]
        self.net = _trained(*self.training, seed=0)

    def objective(self) -> ihvp.Objective:
        return ihvp.Objective(
            lambda outputs, batch: cross_entropy(outputs, batch[1]),
            self.net,
            self.training,
            predict=lambda net, batch: net(batch[0]),
        )

    def ours(self, kind: Callable[[ihvp.Objective], ihvp.LinearOperator]) -> NDArray[Any]:
        objective = self.objective()
        return _scores(ihvp.Influence(objective, _DAMPING, curvature=kind(objective)), self.test)

    def exact(self, solver: ihvp.Solver) -> NDArray[Any]:
        objective = self.objective()
        influence = ihvp.Influence(objective, _DAMPING, solver, curvature=ihvp.GaussNewton(objective))
        return _scores(influence, self.test)

    def curvlinops(self) -> NDArray[Any]:
        factors = EKFACLinearOperator(
            self.net,
            nn.CrossEntropyLoss(),
            list(self.net.parameters()),
            [self.training],
            fisher_type="type-2",
            separate_weight_and_bias=False,
            check_deterministic=False,
        )
        inverse = KFACInverseLinearOperator(factors, damping=_DAMPING, use_exact_damping=True)
        solved = inverse @ self._rows(*self.test).T
        return (solved.T @ self._rows(*self.training).T / _TRAINING).numpy()

    def dots(self) -> NDArray[Any]:
        return (self._rows(*self.test) @ self._rows(*self.training).T).numpy()

    def _rows(self, x: Tensor, y: Tensor) -> Tensor:
        params = {name: p.detach() for name, p in self.net.named_parameters()}

        def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return cross_entropy(functional_call(self.net, params, (x[None],)), y[None])

        found = vmap(grad(loss), (None, 0, 0))(params, x, y)
        return torch.cat([found[name].flatten(1) for name in params], dim=1)

    def retrained(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The mean losses of the queries after training on each half ``(24, 297)``, and the halves."""
        x, y = self.training
        rng = np.random.default_rng(1)
        halves = np.zeros((_HALVES, _TRAINING), dtype=bool)
        losses = np.zeros((_HALVES, len(self.test[1])))
        for half, loss in zip(halves, losses, strict=True):
            half[rng.permutation(_TRAINING)[: _TRAINING // 2]] = True
            for run in range(_RUNS):
                net = _trained(x[half], y[half], seed=1 + run)
                with torch.no_grad():
                    loss += cross_entropy(net(self.test[0]), self.test[1], reduction="none").numpy() / _RUNS
        return losses, halves


def _trained(x: Tensor, y: Tensor, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    for _ in range(30):
        for rows in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net


def _scores(influence: ihvp.Influence, test: tuple[Tensor, Tensor]) -> NDArray[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ihvp.influence.NotAtOptimum)
        return np.asarray(influence.scores(test))


def _lds(scores: NDArray[Any], losses: NDArray[Any], halves: NDArray[Any]) -> NDArray[np.float64]:
    """For each query; a score says how much its loss rises without an example."""
    predicted = -(halves @ scores.T.astype(np.float64))
    return np.asarray([spearmanr(predicted[:, j], losses[:, j]).statistic for j in range(losses.shape[1])])


CASE = Case("structured", {"torch": measure})
