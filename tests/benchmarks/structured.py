"""Influence by Kronecker factors beside an exact Gauss–Newton matrix: what each costs, and what it foretells.

The task: 1,500 digits, 297 queries, a network 64-256-256-10 with ReLU, P = 85,002, trained by SGD with
momentum 0.9, learning rate 0.05 and weight decay 1e-3 for 30 epochs in batches of 50; damping 0.01. The
linear datamodelling score (LDS; Park et al., "TRAK", ICML 2023) is the mean over the queries of the rank
correlation between the sum of the scores of a random half of the training data and the loss after training on
that half alone, twice from other seeds, over 24 halves.
"""

from __future__ import annotations

import copy
import functools
import importlib
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from curvlinops import EKFACLinearOperator, KFACInverseLinearOperator
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import ihvp
from tests.benchmarks.digit_networks import dense, trained
from tests.benchmarks.kronfluence_task import kronfluence_task
from tests.benchmarks.rows import Case, Row, seconds
from tests.benchmarks.timing import Times, in_turns, once

_TRAINING, _HALVES, _RUNS, _DAMPING = 1500, 24, 2, 0.01
_WHAT = "scores of 297 digits on 1,500, P = 85,002"
# Two of the peers take several times longer with all examples at once.
_BATCH = 100
PEERS = ("curvlinops", "kronfluence", "pyDVL")
PARTS = (150, 300, 750)


def measure(device: str) -> list[Row]:
    """What each way costs, and its LDS, beside the best peer's; on a GPU what the quick ones cost."""
    if device != "cpu":
        return _on_gpu(device)
    found = compare()
    times = found.times
    best = max(PEERS, key=found.lds)

    time_row = functools.partial(_time_row, times)

    def lds_row(name: str, low: float | None = None) -> Row:
        return Row(
            what=f"{name}, LDS over {_HALVES} halves",
            ours=f"{found.lds(name):.3f} ± {found.error(name):.3f}",
            peer=f"{best}'s EK-FAC",
            beside=f"{found.lds(best):.3f}",
            value=found.lds(name),
            low=low,
            high=None if low is None else 1.0,
        )

    rest = [name for name in found.scores if name not in {"EK-FAC", "block CG", "Gauss–Newton, rtol 1e-2"}]
    return [
        time_row("EK-FAC", "curvlinops", 0.5),
        *(time_row("EK-FAC", peer) for peer in (*PEERS[1:], "dot products")),
        time_row("K-FAC", "curvlinops"),
        time_row("Gauss–Newton, rtol 1e-1", "curvlinops"),
        time_row("Gauss–Newton, rtol 1e-2", "block CG", 0.5),
        _difference(found.difference("EK-FAC", "curvlinops")),
        lds_row("EK-FAC", found.lds(best) - 0.01),
        lds_row("Gauss–Newton, rtol 1e-2", 0.55),
        *(lds_row(name) for name in rest),
    ]


def _time_row(times: Times, name: str, peer: str, high: float | None = None) -> Row:
    return Row(
        what=f"{name}, {_WHAT}",
        ours=seconds(times[name]),
        peer=peer,
        beside=seconds(times[peer]),
        value=times.ratio(name, peer),
        high=high,
        rival=peer in PEERS,
    )


def _on_gpu(device: str) -> list[Row]:
    task = _Task(device)
    times = in_turns(task.quick(), budget=4.0)
    ours, theirs = task.ours(ihvp.EKFAC), task.curvlinops()
    row = functools.partial(_time_row, times)
    return [
        row("EK-FAC", "curvlinops", 0.5),
        row("EK-FAC", "dot products"),
        row("K-FAC", "curvlinops"),
        _difference(float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))),
    ]


def _difference(value: float) -> Row:
    what = f"EK-FAC, difference from curvlinops' {_WHAT}"
    return Row(what=what, ours="", peer="relative", beside="", value=value, high=1e-3)


@dataclass(frozen=True)
class Comparison:
    """Times and scores of every way, and what the scores are held against.

    Attributes
    ----------
    times : Times
    scores : dict of str to ndarray
        ``(297, 1500)`` each.
    losses : ndarray
        Of the queries after training on each half, ``(24, 297)``.
    halves : ndarray of bool
        ``(24, 1500)``.
    """

    times: Times
    scores: dict[str, NDArray[Any]]
    losses: NDArray[np.float64]
    halves: NDArray[np.bool_]

    def lds(self, name: str) -> float:
        """The mean over the queries; a score says how much its loss rises without an example."""
        return float(self._of_queries(name, np.ones(_HALVES, dtype=bool)).mean())

    def error(self, name: str) -> float:
        """The standard error of the LDS over draws of halves, by the jackknife."""
        without = [self._of_queries(name, kept).mean() for kept in ~np.eye(_HALVES, dtype=bool)]
        return float(np.std(without) * (_HALVES - 1) ** 0.5)

    def difference(self, name: str, other: str) -> float:
        """The relative distance of two ways' scores."""
        scores, others = self.scores[name], self.scores[other]
        return float(np.linalg.norm(scores - others) / np.linalg.norm(others))

    def _of_queries(self, name: str, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        predicted = -(self.halves[kept] @ self.scores[name].T.astype(np.float64))
        ranks = [rankdata(values, axis=0) - (kept.sum() + 1) / 2 for values in (predicted, self.losses[kept])]
        norms = [np.linalg.norm(values, axis=0) for values in ranks]
        return np.asarray((ranks[0] * ranks[1]).sum(axis=0) / (norms[0] * norms[1]))


def compare() -> Comparison:
    """All ways on the task: the quick ones in turns, the others once."""
    task = _Task()
    scores: dict[str, NDArray[Any]] = {}

    def kept(name: str, way: Callable[[], Any]) -> Callable[[], Any]:
        def call() -> None:
            scores[name] = np.asarray(way())

        return call

    loose, usual = ihvp.Auto(rtol=0.1), ihvp.Auto(rtol=1e-2)
    slow: dict[str, Callable[[], Any]] = {
        "kronfluence": task.kronfluence,
        "pyDVL": task.pydvl,
        **{f"{part} examples": functools.partial(task.exact, loose, part) for part in PARTS},
        "Gauss–Newton, rtol 1e-1": functools.partial(task.exact, loose),
        "Gauss–Newton, rtol 1e-2": functools.partial(task.exact, usual),
        "block CG": functools.partial(task.exact, ihvp.CG(rtol=1e-2)),
    }
    for package in ("kronfluence.analyzer", "pydvl.influence.torch"):
        importlib.import_module(package)  # which nobody pays for twice
    in_turn = in_turns({name: kept(name, way) for name, way in task.quick().items()}, budget=4.0)
    alone = Times({name: [once(kept(name, way))] for name, way in slow.items()})
    return Comparison(in_turn | alone, scores, *task.retrained())


class _Task:
    def __init__(self, device: str = "cpu") -> None:
        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))
        x = torch.tensor(digits.data / 16, dtype=torch.float32)[order]
        y = torch.tensor(digits.target)[order]
        net = trained(dense, x[:_TRAINING], y[:_TRAINING])
        x, y = x.to(device), y.to(device)
        self.training, self.test = (x[:_TRAINING], y[:_TRAINING]), (x[_TRAINING:], y[_TRAINING:])
        self.net = net.to(device)

    def quick(self) -> dict[str, Callable[[], NDArray[Any]]]:
        """The ways that are quick enough to be repeated."""
        return {
            "EK-FAC": functools.partial(self.ours, ihvp.EKFAC),
            "K-FAC": functools.partial(self.ours, ihvp.KFAC),
            "curvlinops": self.curvlinops,
            "dot products": self.dots,
        }

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

    def exact(self, solver: ihvp.Solver, examples: int = _TRAINING) -> NDArray[Any]:
        """With the curvature over so many of the examples, which are in random order."""
        objective = self.objective()
        part = objective.on((self.training[0][:examples], self.training[1][:examples]))
        influence = ihvp.Influence(objective, _DAMPING, solver, curvature=ihvp.GaussNewton(part))
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
        return (solved.T @ self._rows(*self.training).T / _TRAINING).numpy(force=True)

    def kronfluence(self) -> NDArray[Any]:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import FactorArguments, ScoreArguments

        task = kronfluence_task()
        net = prepare_model(copy.deepcopy(self.net), task)
        training, test = TensorDataset(*self.training), TensorDataset(*self.test)
        with tempfile.TemporaryDirectory() as folder:
            analyzer = Analyzer("digits", net, task, cpu=True, disable_tqdm=True, output_dir=folder)
            analyzer.fit_all_factors("ekfac", training, _BATCH, factor_args=FactorArguments("ekfac"))
            analyzer.compute_pairwise_scores(
                "scores",
                "ekfac",
                test,
                training,
                per_device_query_batch_size=len(test),
                per_device_train_batch_size=_BATCH,
                score_args=ScoreArguments(damping_factor=_DAMPING),
            )
            scores = analyzer.load_pairwise_scores("scores")["all_modules"]
        return (scores / _TRAINING).numpy()

    def pydvl(self) -> NDArray[Any]:
        from pydvl.influence.torch import EkfacInfluence

        net = copy.deepcopy(self.net)  # it adds to the gradients that the parameters hold
        influence = EkfacInfluence(net, update_diagonal=True, hessian_regularization=_DAMPING)
        batches = DataLoader(TensorDataset(*self.training), _BATCH)
        influence.fit(batches)
        products = influence.influence_factors(*self.test)
        scores = torch.cat([influence.influences_from_factors(products, *batch) for batch in batches], dim=1)
        return (scores / _TRAINING).detach().numpy()

    def dots(self) -> NDArray[Any]:
        return (self._rows(*self.test) @ self._rows(*self.training).T).numpy(force=True)

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
                net = trained(dense, x[half], y[half], seed=1 + run)
                with torch.no_grad():
                    loss += cross_entropy(net(self.test[0]), self.test[1], reduction="none").numpy() / _RUNS
        return losses, halves


def _scores(influence: ihvp.Influence, test: tuple[Tensor, Tensor]) -> NDArray[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ihvp.influence.NotAtOptimum)
        return np.asarray(influence.scores(test))


CASE = Case("structured", "Influence by Kronecker factors", {"torch": measure}, often=False)
