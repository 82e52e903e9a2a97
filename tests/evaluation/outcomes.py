"""The trainings that all methods of a task are judged by."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import ihvp
from ihvp.evaluate import Outcomes, all_but, random_subsets
from tests.evaluation.tasks import Trained
from tests.evaluation.worker import told

_TUNING_SUBSETS, _SINGLES, _BRITTLE, JOBS = 30, 40, 6, 2
"""Halves that choose dampings; examples that are left out alone; test points that lose their best;
processes."""
_INDICES = {
    "own Gram matrix": ("ihvp-index--own-gram-matrix", "ihvp-influence--outer-products", ihvp.OPG),
    "EK-FAC": ("ihvp-index--ek-fac", "ihvp-influence--ek-fac", ihvp.EKFAC),
    "EK-FAC, sparse": ("ihvp-index--ek-fac--sparse", "ihvp-influence--ek-fac", ihvp.EKFAC),
}
"""Each index, and what it is without the projection."""


class Judged:
    """Outcomes of one task, kept in its folder.

    Attributes
    ----------
    tuning, halves, singles : Outcomes
        To choose dampings, on test points and halves of its own; for the LDS; without single examples.
    """

    def __init__(self, trained: Trained) -> None:
        self.trained = trained
        task, split, folder = trained.task, trained.split, trained.folder
        masks = random_subsets(task.training, task.subsets + _TUNING_SUBSETS)
        points = tuple(torch.cat(parts) for parts in zip(split.tuning, split.judged, strict=True))
        first = len(split.tuning[1])
        every = self._retrained(points, masks, task.seeds, "halves").losses
        self.halves = Outcomes(masks[: task.subsets], every[: task.subsets, first:])
        self.tuning = Outcomes(masks[task.subsets :], every[task.subsets :, :first])
        np.savez(folder / "tuning.npz", subsets=self.tuning.subsets, losses=self.tuning.losses)
        removed = np.random.default_rng(1).permutation(task.training)[:_SINGLES]
        self.singles = self._retrained(split.judged, all_but(task.training, removed), 1, "singles")

    def _retrained(self, points: Any, masks: Any, seeds: int, name: str) -> Outcomes:
        trained = self.trained
        return ihvp.evaluate.retrain(
            trained.objective(),
            trained.train_fn,
            points,
            masks,
            seeds=seeds,
            out=trained.folder / name,
            n_jobs=JOBS,
            progress=False,
        )

    def numbers(self, slug: str, scores: Any, own: Any) -> dict[str, list[float] | None]:
        """Each column with its standard error, by its name."""
        trained = self.trained
        few = tuple(part[:_BRITTLE] for part in trained.split.judged)
        top = np.argsort(-scores[:_BRITTLE], axis=1, kind="stable")
        without = ihvp.evaluate.brittleness(
            top,
            trained.objective(),
            trained.train_fn,
            few,
            [trained.task.training // 10],
            draws=1,
            out=trained.folder / f"{slug}-without",
            n_jobs=JOBS,
            progress=False,
        )
        found: dict[str, list[float] | None] = {
            "brittleness": [float(without.value[0]), float(without.standard_error[0])],
            "random": [float(without.random_per_test.mean())],
        }
        for name, judge, outcomes in (
            ("lds", ihvp.evaluate.lds, self.halves),
            ("loo", ihvp.evaluate.leave_one_out, self.singles),
        ):
            agreement = judge(scores, outcomes)
            found[name] = [agreement.value, agreement.standard_error]
        detected = ihvp.evaluate.detection(own, trained.split.wrong) if own.size else None
        found["auc"] = None if detected is None else [detected.value, detected.standard_error]
        return found

    def bar(self) -> dict[str, Any]:
        """The LDS of an index less that of what it projects: at one damping, and each as chosen."""
        objective, judged, found = self.trained.objective(), self.trained.split.judged, {}
        for name, (index, whole, curvature) in _INDICES.items():
            about = told(self.trained.folder, index)
            if "lds" not in about or "lds" not in told(self.trained.folder, whole):
                continue
            damping = about["damping"]
            exact = ihvp.Influence(objective, damping, curvature=curvature(objective)).scores(judged)
            ours = ihvp.evaluate.lds(self._scores(index), self.halves)
            differences = (
                ours - ihvp.evaluate.lds(other, self.halves) for other in (exact, self._scores(whole))
            )
            found[name] = [[each.value, each.standard_error] for each in differences]
        return found

    def _scores(self, slug: str) -> Any:
        with np.load(self.trained.folder / f"{slug}.npz") as found:
            return found["scores"]
