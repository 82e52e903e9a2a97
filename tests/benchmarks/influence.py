"""Influence scores of 297 test digits on 1,500 training digits, and the memory of a large ``top_k``.

Every side solves for each test point to a residual of 1e-3. The residuals are the largest true ones of the
inverse products behind the scores, recomputed in float64 by the oracle. pyDVL squares its tolerance, and
dattri has only a number of iterations: they have the loosest setting that gets there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ihvp
from tests.benchmarks.memory import peak_of
from tests.benchmarks.models import MODELS, Model, TorchModel
from tests.benchmarks.problems import digits, example_gradients, largest
from tests.benchmarks.rows import Case, Row, seconds
from tests.benchmarks.timing import in_turns, timed

_DAMPING, _RTOL = 0.02, 1e-3
_TESTS, _SMALL, _LARGE, _BATCH, _SAMPLE = 256, 4_000, 40_000, 2_000, 500
"""Test points, training examples, those of a batch, and how many the curvature is taken over."""


@dataclass(frozen=True)
class Pipeline:
    """A way from a model to scores.

    Attributes
    ----------
    scores, products : callable
        ``scores(setting)``, ``(n_test, n_train)``, and the inverse products in them, ``(n_test, P)``.
    settings : iterable of float
        From the loosest on.
    """

    scores: Callable[[float], Any]
    products: Callable[[float], Any]
    settings: Iterable[float]


def measure(framework: str, device: str) -> list[Row]:
    """Memory first: peers leave freed memory with the process."""
    memory = _memory(framework) if (framework, device) == ("torch", "cpu") else []
    return [*_times(framework, device), *memory]


def _times(framework: str, device: str) -> list[Row]:
    problem = digits(32)
    model = MODELS[framework](problem, device)
    test = _batch(model, problem.test_x, problem.test_y)
    slopes = example_gradients(problem, problem.test_x, problem.test_y).T
    pipelines = {"ihvp": _ours(model, test)}
    if isinstance(model, TorchModel):
        pipelines["pyDVL"] = _pydvl(model, test)
        if framework == "torch":
            pipelines["dattri"] = _dattri(model, test)
    damped = problem.hessian_product(np.eye(problem.size)) + _DAMPING * np.eye(problem.size)
    sides: dict[str, Callable[[], Any]] = {}
    residuals = {}
    for name, pipeline in pipelines.items():
        for setting in pipeline.settings:
            products = np.asarray(pipeline.products(setting), dtype=np.float64).T
            sides[name] = partial(pipeline.scores, setting)
            residuals[name] = largest(slopes - damped @ products, slopes)
            if residuals[name] <= 1.01 * _RTOL:  # whose own sums are in float32
                break
    train = example_gradients(problem, problem.x, problem.y)
    exact = np.linalg.solve(damped, slopes).T @ train.T / len(train)
    first = {name: timed(scores) for name, scores in sides.items()}
    wrong = [name for name, (_, scores) in first.items() if _error(np.asarray(scores), exact) > _RTOL]
    if wrong:
        raise RuntimeError(f"The scores of {', '.join(wrong)} are others than those of dense linear algebra.")
    # It takes far longer.
    alone = {name: time for name, (time, _) in first.items() if name == "dattri"}
    turns = {name: scores for name, scores in sides.items() if name not in alone}
    times = in_turns(turns, budget=6.0, felt=framework == "torch")
    shape = " × ".join(f"{length:,}" for length in exact.shape[::-1])
    return [
        Row(
            what=f"influence scores {shape}, digits {problem.name}, CG to 1e-3",
            ours=seconds(times["ihvp"]),
            peer=name,
            beside=seconds(alone.get(name) or times[name]),
            value=times["ihvp"] / alone[name] if name in alone else times.ratio("ihvp", name),
            high=0.5,
            rival=True,
            residual=residuals["ihvp"],
            peer_residual=residuals[name],
        )
        for name in sides
        if name != "ihvp"
    ]


def _ours(model: Model, test: Any) -> Pipeline:
    def influence(rtol: float) -> ihvp.Influence:
        return ihvp.Influence(model.objective(), _DAMPING, ihvp.CG(rtol=rtol))

    return Pipeline(
        lambda rtol: influence(rtol).scores(test, progress=False),
        lambda rtol: influence(rtol).inverse_products(test, progress=False).vectors,
        [_RTOL],
    )


def _pydvl(model: TorchModel, test: Any) -> Pipeline:
    from pydvl.influence.torch import CgInfluence
    from torch.utils.data import DataLoader, TensorDataset

    train = TensorDataset(*model.batch)
    loader = DataLoader(train, batch_size=len(train))

    def influence(tolerance: float) -> Any:
        return CgInfluence(
            model.module,
            model.criterion,
            regularization=_DAMPING,
            rtol=tolerance,
            atol=1e-12,
            maxiter=1000,
            solve_simultaneously=True,
            warn_on_max_iteration=False,
        ).fit(loader)

    return Pipeline(
        lambda tolerance: influence(tolerance).influences(*test, *model.batch),
        lambda tolerance: influence(tolerance).influence_factors(*test),
        [_RTOL**0.5 * 0.7**step for step in range(-4, 10)],
    )


def _dattri(model: TorchModel, test: Any) -> Pipeline:
    import torch
    from dattri.algorithm.influence_function import IFAttributorCG
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader, TensorDataset

    train = TensorDataset(*model.batch)
    loader = DataLoader(train, batch_size=len(train))
    tests = DataLoader(TensorDataset(*test), batch_size=len(test[1]))

    def loss(params: Any, data: Any) -> Any:
        outputs = torch.func.functional_call(model.module, params, (torch.atleast_2d(data[0]),))
        return model.criterion(outputs, data[1].reshape(-1))

    def attributor(iterations: float) -> Any:
        task = AttributionTask(loss, model.module, model.module.state_dict())
        made = IFAttributorCG(task, max_iter=int(iterations), regularization=_DAMPING)
        made.cache(loader)
        return made

    def products(iterations: float) -> Any:
        made = attributor(iterations)
        slopes = made.generate_test_rep(0, tuple(array[None] for array in test))
        return made.transform_test_rep(0, slopes).detach()

    return Pipeline(
        lambda iterations: attributor(iterations).attribute(loader, tests).detach().T,
        products,
        range(30, 60, 6),
    )


def _memory(framework: str) -> list[Row]:
    """``top_k`` over the made data that C is the mean over, with the curvature of a part of it.

    What counts is all that the process has resident: interpreter, framework and data too.
    """
    problem = digits(256, 256, steps=1)
    model, rng = MODELS[framework](problem), np.random.default_rng(0)

    def made(count: int) -> Any:
        x = rng.standard_normal((count, problem.x.shape[1]), dtype=np.float32)
        return _batch(model, x, rng.integers(0, 10, count))

    part, test = made(_SAMPLE), made(_TESTS)
    curvature = ihvp.Hessian(model.objective(part))
    peaks = {}
    for count in (_SMALL, _LARGE):
        x, y = made(count)
        # The gradient of C over one batch would hold the network's activations for all examples.
        batches = list(zip(x.split(_BATCH), y.split(_BATCH), strict=True))
        influence = ihvp.Influence(model.objective(batches), 1.0, ihvp.CG(rtol=1e-2), curvature=curvature)
        peaks[count] = peak_of(partial(influence.top_k, test, 10, progress=False))
    what = f"peak of top_k with {_TESTS} test points, P = {problem.size:,}, H over {_SAMPLE:,} examples"
    return [
        Row(
            what=f"{what}, {_LARGE:,} training examples, in GiB",
            ours=f"{peaks[_LARGE] / 2**30:.2f} GiB resident",
            peer="limit",
            beside="2 GiB",
            value=peaks[_LARGE] / 2**30,
            high=2.0,
        ),
        Row(
            what=f"{what}, {_LARGE:,} beside {_SMALL:,} training examples",
            ours=f"{peaks[_LARGE] / 2**30:.2f} GiB",
            peer=f"{_SMALL:,} examples",
            beside=f"{peaks[_SMALL] / 2**30:.2f} GiB",
            value=peaks[_LARGE] / peaks[_SMALL],
            low=0.9,
            high=1.1,
        ),
    ]


def _batch(model: Model, x: NDArray[Any], y: NDArray[Any]) -> Any:
    if not isinstance(model, TorchModel):
        return x, y
    import torch

    return torch.tensor(x, device=model.device), torch.tensor(y, device=model.device)


def _error(scores: NDArray[Any], exact: NDArray[np.float64]) -> float:
    """Relative, up to the one factor by which libraries differ: 1/N, the sign."""
    found = scores.astype(np.float64)
    found = found * (np.vdot(found, exact) / np.vdot(found, found))
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


CASE = Case(
    "influence",
    "Influence scores by conjugate gradients",
    {framework: partial(measure, framework) for framework in ("torch", "torch-compiled")},
)
