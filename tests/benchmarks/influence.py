"""Influence scores of 297 test digits on 1,500 training digits, and the memory of a large ``top_k``.

The residuals are relative errors of the scores against dense float64 linear algebra, up to the one factor by
which libraries differ (1/N, the sign). Peers have the loosest tolerance, or the fewest iterations, that bring
them to 1e-3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ihvp
from tests.benchmarks.memory import peak_of
from tests.benchmarks.models import MODELS, Model, TorchModel
from tests.benchmarks.problems import Network, digits
from tests.benchmarks.rows import Case, Row, seconds
from tests.benchmarks.timing import in_turns

_DAMPING, _RTOL = 0.02, 1e-3
_TESTS, _SMALL, _LARGE, _SAMPLE = 256, 20_000, 200_000, 2_000


def measure(framework: str, device: str) -> list[Row]:
    """Memory first: peers leave freed memory with the process."""
    memory = _memory(framework) if device == "cpu" else []
    return [*_scores(framework, device), *memory]


def _scores(framework: str, device: str) -> list[Row]:
    problem = digits(32)
    model = MODELS[framework](problem, device)
    exact = _exact(problem)
    test = _batch(model, problem.test_x, problem.test_y)

    def ours() -> Any:
        return ihvp.Influence(model.objective(), _DAMPING, ihvp.CG(rtol=_RTOL)).scores(test, progress=False)

    sides: dict[str, Callable[[], Any]] = {"ihvp": ours}
    errors = {"ihvp": _error(np.asarray(ours()), exact)}
    if isinstance(model, TorchModel):
        for name, (pipeline, knobs) in _pipelines(model, test).items():
            for knob in knobs:
                sides[name] = partial(pipeline, knob)
                errors[name] = _error(sides[name](), exact)
                if errors[name] <= _RTOL:
                    break
    times = in_turns(sides, budget=15.0)
    shape = " × ".join(f"{length:,}" for length in exact.shape[::-1])
    return [
        Row(
            what=f"influence scores {shape}, digits {problem.name}, CG to 1e-3",
            ours=seconds(times["ihvp"]),
            peer=name,
            beside=seconds(times[name]),
            value=times.ratio("ihvp", name),
            high=0.5,
            residual=errors["ihvp"],
            peer_residual=errors[name],
        )
        for name in sides
        if name != "ihvp"
    ]


def _pipelines(
    model: TorchModel, test: Any
) -> dict[str, tuple[Callable[[float], NDArray[Any]], Iterable[float]]]:
    """pyDVL's and dattri's own ways from a model to scores ``(n_test, n_train)``."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    train = TensorDataset(*model.batch)
    loader = DataLoader(train, batch_size=len(train))

    def pydvl(tolerance: float) -> NDArray[Any]:
        from pydvl.influence.torch import CgInfluence

        influence = CgInfluence(
            model.module,
            model.criterion,
            regularization=_DAMPING,
            rtol=tolerance,
            atol=1e-12,
            maxiter=1000,
            solve_simultaneously=True,
            warn_on_max_iteration=False,
        ).fit(loader)
        return np.asarray(influence.influences(*test, *model.batch))

    def dattri(iterations: float) -> NDArray[Any]:
        from dattri.algorithm.influence_function import IFAttributorCG
        from dattri.task import AttributionTask

        def loss(params: Any, data: Any) -> Any:
            outputs = torch.func.functional_call(model.module, params, (torch.atleast_2d(data[0]),))
            return model.criterion(outputs, data[1].reshape(-1))

        task = AttributionTask(loss, model.module, model.module.state_dict())
        attributor = IFAttributorCG(task, max_iter=int(iterations), regularization=_DAMPING)
        attributor.cache(loader)
        tests = DataLoader(TensorDataset(*test), batch_size=len(test[1]))
        return np.asarray(attributor.attribute(loader, tests).detach().T)

    tolerances = [0.1 * 2.0**-j for j in range(14)]
    return {"pyDVL": (pydvl, tolerances), "dattri": (dattri, range(5, 100, 5))}


def _memory(framework: str) -> list[Row]:
    """``top_k`` over made data, with the curvature of a part of it."""
    problem = digits(256, 256, steps=1)
    model, rng = MODELS[framework](problem), np.random.default_rng(0)

    def made(count: int) -> Any:
        x = rng.standard_normal((count, problem.x.shape[1]), dtype=np.float32)
        return _batch(model, x, rng.integers(0, 10, count))

    part, test = made(_SAMPLE), made(_TESTS)
    influence = ihvp.Influence(model.objective(part), 1.0, ihvp.CG(rtol=1e-2))
    peaks = {}
    for count in (_SMALL, _LARGE):
        peaks[count] = peak_of(partial(influence.top_k, test, 10, made(count), progress=False))
    what = f"peak of top_k with {_TESTS} test points, P = {problem.size:,}"
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


def _exact(problem: Network) -> NDArray[np.float64]:
    from tests.benchmarks.problems import example_gradients

    H = problem.hessian_product(np.eye(problem.size)) + _DAMPING * np.eye(problem.size)
    train = example_gradients(problem, problem.x, problem.y)
    test = example_gradients(problem, problem.test_x, problem.test_y)
    return np.asarray(test @ np.linalg.solve(H, train.T) / len(train))


def _error(scores: NDArray[Any], exact: NDArray[np.float64]) -> float:
    found = scores.astype(np.float64)
    found = found * (np.vdot(found, exact) / np.vdot(found, found))
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


CASE = Case("influence", {framework: partial(measure, framework) for framework in ("torch",)})
