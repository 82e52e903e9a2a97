"""The methods of this library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import ihvp
from tests.evaluation.methods import Fitted, Method, NotHere
from tests.evaluation.tasks import Trained, loss, predict

_PAIRS = 50
"""Eigenpairs of Arnoldi influence, as captum's."""


def margin(outputs: Any, batch: Any) -> Any:
    """The output that TRAK explains: ``log p / (1 − p)`` of the label."""
    right = outputs.gather(1, batch[1][:, None])[:, 0]
    others = outputs.scatter(1, batch[1][:, None], -torch.inf).logsumexp(1)
    return (right - others).mean()


def _influence(name: str, curvature: Callable[[ihvp.Objective], Any]) -> Method:
    def fit(trained: Trained, folder: Path) -> Fitted:
        objective = trained.objective()
        operator = curvature(objective)
        return lambda damping, *test: ihvp.Influence(objective, damping, curvature=operator).scores(test)

    return Method(name, "ihvp", fit, tuned=True, curvature=curvature)


def _pairs(objective: ihvp.Objective) -> ihvp.LowRank:
    count = min(_PAIRS, objective.num_params // 2)
    return ihvp.LowRank(ihvp.eigsh(ihvp.GaussNewton(objective), k=count))


def _relatif(trained: Trained, folder: Path) -> Fitted:
    objective = trained.objective()
    factors = ihvp.EKFAC(objective)
    return lambda damping, *test: ihvp.RelatIF(objective, damping, curvature=factors).scores(test)


def _index(trained: Trained, folder: Path) -> Fitted:
    objective = trained.objective()
    index = ihvp.build_index(objective, folder / "index", ihvp.Projection(trained.dim))
    index.curvature = "gram"
    return lambda damping, *test: _at(index, damping).scores(test)


def _logra(trained: Trained, folder: Path) -> Fitted:
    index = ihvp.LoGra(trained.objective(), folder / "logra", trained.dim, damping=1.0)
    return lambda damping, *test: _at(index, damping).scores(test)


def _at(index: ihvp.GradientIndex, damping: float) -> ihvp.GradientIndex:
    index.damping = damping
    return index


def _whitened(kind: Any) -> Callable[[Trained, Path], Fitted]:
    def fit(trained: Trained, folder: Path) -> Fitted:
        objective = trained.objective()
        factors, projection = ihvp.EKFAC(objective), ihvp.Projection(trained.dim, kind)

        def scores(damping: float, *test: Any) -> Any:
            out = folder / f"index-{damping:g}"
            index = ihvp.build_index(objective, out, projection, curvature=factors, damping=damping)
            return index.scores(test)

        return scores

    return fit


def _trak(trained: Trained, folder: Path) -> Fitted:
    projection = ihvp.Projection(trained.dim)
    trak = ihvp.TRAK(trained.objective(), margin, folder / "trak", projection=projection, damping=1.0)

    def scores(damping: float, *test: Any) -> Any:
        for index in trak.indices:
            index.damping = damping
        return trak.scores(test)

    return scores


def _tracin(trained: Trained, folder: Path) -> Fitted:
    method = ihvp.TracIn(trained.objective(), trained.checkpoints)
    return lambda damping, *test: method.scores(test)


def _similar(kind: Any) -> Callable[[Trained, Path], Fitted]:
    def fit(trained: Trained, folder: Path) -> Fitted:
        method = kind(trained.objective())
        return lambda damping, *test: method.scores(test)

    return fit


def _representer(trained: Trained, folder: Path) -> Fitted:
    layers = trained.layers()
    if len(layers) == 1:
        raise NotHere("the last layer is the whole model: products of gradients")
    weight = f"{layers[-1]}.weight"
    objective = ihvp.Objective(loss, trained.net, trained.split.training, predict=predict, only=weight)
    method = ihvp.RepresenterPoints(objective, trained.task.decay, train_loss=loss)
    return lambda damping, *test: method.scores(test)


METHODS = (
    _influence("Influence, Hessian", ihvp.Hessian),
    _influence("Influence, Gauss–Newton", ihvp.GaussNewton),
    _influence("Influence, outer products", ihvp.OPG),
    _influence("Influence, K-FAC", ihvp.KFAC),
    _influence("Influence, EK-FAC", ihvp.EKFAC),
    _influence("Arnoldi: Gauss–Newton, 50 eigenpairs", _pairs),
    Method("RelatIF, EK-FAC", "ihvp", _relatif, tuned=True),
    Method("Index, own Gram matrix", "ihvp", _index, tuned=True),
    Method("Index, EK-FAC", "ihvp", _whitened("eigen"), tuned=True),
    Method("Index, EK-FAC, sparse", "ihvp", _whitened("sparse"), tuned=True),
    Method("LoGra", "ihvp", _logra, tuned=True),
    Method("TRAK, one training", "ihvp", _trak, tuned=True),
    Method("TracIn, 5 checkpoints", "ihvp", _tracin),
    Method("GradientDot", "ihvp", _similar(ihvp.GradientDot)),
    Method("GradientCosine", "ihvp", _similar(ihvp.GradientCosine), on_itself=False),
    Method("RepresenterPoints", "ihvp", _representer),
)
