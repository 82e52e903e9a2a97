"""Indices of gradients: building one beside the gradients alone, asking one beside a bare loop over it.

The bare loop reads the numbers of the same file, makes float32 of them and multiplies them by the questions,
in parts of the same size. Times are seconds of one processor.
"""

from __future__ import annotations

import itertools
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import ihvp
from tests.benchmarks.rows import Case, Row, seconds

_DIM, _ROWS, _QUESTIONS, _TURNS = 1024, 500_000, 64, 3
_MEGABYTE = 1 << 10  # of the kilobytes that the system counts


def measure(device: str) -> list[Row]:
    """The rows."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return [*_building(Path(folder)), *_asking(Path(folder) / "large")]


def _building(folder: Path) -> list[Row]:
    rows = []
    for count, widths in ((6000, (64, 256, 256, 10)), (1500, (784, 512, 512, 10))):
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for pair in itertools.pairwise(widths):
            layers += [nn.Linear(*pair), nn.Tanh()]
        data = torch.randn(count, widths[0]), torch.randint(10, (count,))
        objective = ihvp.Objective(
            lambda outputs, batch: nn.functional.cross_entropy(outputs, batch[1]),
            nn.Sequential(*layers[:-1]),
            data,
            predict=lambda model, batch: model(batch[0]),
        )
        kinds = ("sparse", "factored")
        found: dict[str, list[float]] = {kind: [] for kind in ("gradients", *kinds)}
        for turn in range(_TURNS):
            found["gradients"].append(_processor(lambda o=objective: list(map(len, _rows(o)))))
            for kind in kinds:
                out = folder / f"{count}-{kind}-{turn}"
                projection = ihvp.Projection(_DIM, kind)
                found[kind].append(
                    _processor(lambda o=objective, p=out, r=projection: ihvp.build_index(o, p, r))
                )
        alone = float(np.median(found["gradients"]))
        for kind, high in zip(kinds, (1.3, 0.5), strict=True):
            built = float(np.median(found[kind]))
            rows.append(
                Row(
                    what=f"an index, {kind}, P = {objective.num_params:,}, N = {count:,}",
                    ours=seconds(built),
                    peer="gradients alone",
                    beside=seconds(alone),
                    value=built / alone,
                    high=high,
                )
            )
    return rows


def _rows(objective: ihvp.Objective) -> Any:
    return objective.per_example_gradient_chunks()


def _asking(folder: Path) -> list[Row]:
    # A mean of x · w has the gradients x.
    x = torch.randn(10_000, _DIM)
    data = [x] * (_ROWS // len(x))
    objective = ihvp.Objective(lambda w, batch: (batch @ w).mean(), torch.zeros(_DIM), data, checks=False)
    index = ihvp.build_index(objective, folder, ihvp.Projection(_DIM))
    questions = torch.randn(_QUESTIONS, _DIM)
    found: dict[str, list[float]] = {"bare": [], "scores": [], "top_k": []}
    index.top_k(questions, 10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(_TURNS):
        found["top_k"].append(_processor(lambda: index.top_k(questions, 10)))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / _MEGABYTE
    for _ in range(_TURNS):
        found["bare"].append(_processor(lambda: _bare(index)))
        found["scores"].append(_processor(lambda: index.scores(questions)))
    bare = float(np.median(found["bare"]))
    what = f"{_QUESTIONS} questions to {_ROWS:,} × {_DIM:,} in float16"
    rows = [
        Row(
            what=f"{what}, {name}",
            ours=seconds(float(np.median(found[name]))),
            peer="a bare loop",
            beside=seconds(bare),
            value=float(np.median(found[name])) / bare,
            high=1.3,
        )
        for name in ("scores", "top_k")
    ]
    rows.append(
        Row(
            what=f"{what}, growth of the peak in top_k after the first call",
            ours=f"{grown:.0f} MB",
            peer="the file",
            beside=f"{index.nbytes / 1e6:.0f} MB",
            value=grown * 1e6 / index.nbytes,
            high=0.05,
        )
    )
    return rows


def _bare(index: ihvp.GradientIndex) -> np.ndarray:
    records = index._records
    questions = np.random.default_rng(0).standard_normal((_QUESTIONS, _DIM), dtype=np.float32)
    scores, step = np.empty((_QUESTIONS, len(index)), np.float32), 4096
    with (index.folder / "gradients.npy").open("rb") as file:
        file.seek(records.offset)
        for start in range(0, len(index), step):
            part = np.fromfile(file, records.dtype, min(step, len(index) - start))
            scores[:, start : start + len(part)] = questions @ part["values"].astype(np.float32).T
    return scores


def _processor(call: Callable[[], Any]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


CASE = Case("indices", "Indices of projected gradients", {"torch": measure}, often=False)
