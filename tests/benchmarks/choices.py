"""What each way to solve with a Gauss–Newton matrix takes on six problems, beside ``solver="auto"``.

32 right-hand sides, the gradients of as many test digits, in two blocks of 16 with one ``ihvp.inverse``;
damping 0.01, relative residuals ≤ 0.01. The networks have the form 64-256-256-10 where nothing else is said.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import ihvp
from ihvp.errors import SolverError
from tests.benchmarks.digit_networks import dense, trained
from tests.benchmarks.rows import Case, Row, seconds
from tests.benchmarks.timing import once

_TRAINING, _QUERIES, _WIDTH, _DAMPING, _RTOL = 1500, 32, 16, 0.01, 1e-2
# Kronecker factors took twice to three times as long as the best on each of the problems, as preconditioners:
# they are measured on these two, for so many iterations of a block at most.
_WITH_FACTORS, _MOST = ("a fitted network", "softmax regression"), 10
# What took so many times as long as the fastest in its first turn has no other.
_HOPELESS = 1.3


def measure(device: str) -> list[Row]:
    """Times and products of each way."""
    return [row for what, make in _PROBLEMS.items() for row in _rows(what, *make())]


def _rows(what: str, objective: ihvp.Objective, test: tuple[Tensor, Tensor]) -> list[Row]:
    operator = ihvp.GaussNewton(objective)
    queries = objective.on(test).per_example_gradients().T
    products: dict[str, str] = {}

    def solve(name: str, solver: ihvp.Solver) -> None:
        inverse, count, more = ihvp.inverse(operator, _DAMPING, solver), 0, ""
        for part in range(0, _QUERIES, _WIDTH):
            try:
                count += inverse.solve(queries[:, part : part + _WIDTH]).matvecs
            except SolverError as error:
                count, more = count + error.solution.matvecs, "more than "
        products[name] = f"{more}{count}"

    solvers: dict[str, ihvp.Solver] = {
        "auto": ihvp.Auto(rtol=_RTOL),
        "CG": ihvp.CG(rtol=_RTOL),
        "Nyström": ihvp.CG(rtol=_RTOL, preconditioner="nystrom"),
    }
    if what in _WITH_FACTORS:
        solvers["K-FAC"] = ihvp.CG(rtol=_RTOL, preconditioner="kfac", max_iterations=_MOST)
        solvers["EK-FAC"] = ihvp.CG(rtol=_RTOL, preconditioner="ekfac", max_iterations=_MOST)
    if objective.num_params <= 1000:
        solvers["the matrix"] = ihvp.Direct(rtol=_RTOL)
    ways = {name: functools.partial(solve, name, solver) for name, solver in solvers.items()}
    # The best of some turns: fewer where they are long, one of what cannot be the best any more.
    found = {name: once(way) for name, way in ways.items()}
    least = min(found.values())
    again = [name for name, time in found.items() if name == "auto" or time < _HOPELESS * least]
    for _ in range(3 if least < 1 else 1):
        for name in again:
            found[name] = min(found[name], once(ways[name]))
    others = [name for name in ways if name != "auto"]
    best = min(others, key=found.__getitem__)

    def described(name: str) -> str:
        return f"{seconds(found[name])}, {products[name]} products"

    return [
        Row(
            what=f"32 inverse products, {what}, P = {objective.num_params:,}",
            ours=described("auto"),
            peer=name,
            beside=described(name),
            value=found["auto"] / found[name],
            high=1.1 if name == best else None,
        )
        for name in others
    ]


def _problem(
    make: Callable[[], nn.Module],
    *,
    epochs: int = 30,
    decay: float = 1e-3,
    rate: float = 0.05,
    spread: float = 0,
) -> tuple[ihvp.Objective, tuple[Tensor, Tensor]]:
    digits = load_digits()
    rng = np.random.default_rng(0)
    order = rng.permutation(len(digits.target))
    # Pixels of scales that differ by so many powers of ten.
    scales = 10 ** rng.uniform(-spread / 2, spread / 2, 64)
    x = torch.tensor(digits.data / 16 * scales, dtype=torch.float32)[order]
    y = torch.tensor(digits.target)[order]
    training = x[:_TRAINING], y[:_TRAINING]
    objective = ihvp.Objective(
        lambda outputs, batch: cross_entropy(outputs, batch[1]),
        trained(make, *training, epochs=epochs, decay=decay, rate=rate),
        training,
        predict=lambda net, batch: net(batch[0]),
    )
    queries = slice(_TRAINING, _TRAINING + _QUERIES)
    return objective, (x[queries], y[queries])


def _convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


_PROBLEMS: dict[str, Callable[[], tuple[ihvp.Objective, tuple[Tensor, Tensor]]]] = {
    "a fitted network": functools.partial(_problem, dense),
    "a barely trained one": functools.partial(_problem, dense, epochs=1),
    "ten times the weight decay": functools.partial(_problem, dense, decay=1e-2),
    "a convolutional network": functools.partial(_problem, _convolutional),
    "softmax regression": functools.partial(_problem, functools.partial(nn.Linear, 64, 10)),
    "pixels of other scales": functools.partial(_problem, dense, rate=0.005, spread=3),
}

CASE = Case("choices", "Ways to solve with a Gauss–Newton matrix", {"torch": measure})
