"""The ten largest eigenpairs of the Hessian over all digits."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ihvp.eigen.eigsh import eigsh
from tests.benchmarks.models import MODELS, JaxModel, TorchModel
from tests.benchmarks.peers import curvlinops_hessian
from tests.benchmarks.problems import Network, digits
from tests.benchmarks.rows import Case, Row, seconds
from tests.benchmarks.timing import in_turns, timed

_PAIRS, _TOL = 10, 1e-3
_BARS = {"torch": 1 / 2, "jax": 1 / 4}
# Other libraries do not look for pairs that the search has missed.
_UNPROBED = "ours without a probe for missed pairs"
_DEPTHS = range(_PAIRS + 1, 75)


def measure(framework: str, device: str) -> list[Row]:
    """Beside ARPACK on curvlinops' operator; PyHessian in torch, matfree in JAX."""
    problem = digits(256, 256, train=1797, steps=20)
    model = MODELS[framework](problem, device)
    torch_model = model if isinstance(model, TorchModel) else TorchModel(problem)
    sides: dict[str, Callable[[], Any]] = {
        "ihvp": lambda: eigsh(model.hessian(), k=_PAIRS, tol=_TOL).vectors,
        "curvlinops + eigsh": lambda: _arpack(torch_model)[1],
    }
    if isinstance(model, JaxModel):
        sides["matfree"] = _matfree(model, problem)
    sides[_UNPROBED] = lambda: eigsh(model.hessian(), k=_PAIRS, tol=_TOL, confidence=None).vectors
    times = in_turns(sides, budget=5.0)
    pairs = eigsh(model.hessian(), k=_PAIRS, tol=_TOL)
    residual = problem.eigen_residual(pairs.values, _numpy(pairs.vectors))
    others = {"curvlinops + eigsh": problem.eigen_residual(*_arpack(torch_model))}
    if isinstance(model, JaxModel):
        others["matfree"] = problem.eigen_residual(*_rayleigh(problem, _numpy(sides["matfree"]())))
    what = f"10 largest eigenpairs, digits {problem.name} (P = {problem.size:,})"
    ours = f"{seconds(times['ihvp'])}, {pairs.matvecs} products"
    rows = [
        Row(
            what=what,
            ours=ours,
            peer=name,
            beside=seconds(times[name]),
            value=times.ratio("ihvp", name),
            rival=True,
            high=_BARS[framework] if name == "curvlinops + eigsh" else 1.0,
            residual=residual,
            peer_residual=others[name],
        )
        for name in others
    ]
    unprobed = eigsh(model.hessian(), k=_PAIRS, tol=_TOL, confidence=None)
    rows.append(
        Row(
            what=what,
            ours=ours,
            peer=_UNPROBED,
            beside=f"{seconds(times[_UNPROBED])}, {unprobed.matvecs} products",
            value=times.ratio("ihvp", _UNPROBED),
            residual=residual,
            peer_residual=problem.eigen_residual(unprobed.values, _numpy(unprobed.vectors)),
        )
    )
    if framework == "torch":
        time, found = timed(lambda: _pyhessian(torch_model, device))
        row = Row(
            what=what,
            ours=ours,
            peer="PyHessian",
            beside=seconds(time),
            value=times["ihvp"] / time,
            rival=True,
            high=1.0,
            residual=residual,
            peer_residual=problem.eigen_residual(*found),
        )
        rows.append(row)
    return rows


def _arpack(model: TorchModel) -> tuple[np.ndarray, np.ndarray]:
    from scipy.sparse.linalg import eigsh as arpack

    values, vectors = arpack(curvlinops_hessian(model).to_scipy(), k=_PAIRS, which="LA", tol=_TOL)
    return values, vectors


def _pyhessian(model: TorchModel, device: str) -> tuple[list[float], np.ndarray]:
    from pyhessian import hessian

    operator = hessian(model.module, model.criterion, data=model.batch, cuda=device == "cuda")
    values, vectors = operator.eigenvalues(top_n=_PAIRS, tol=_TOL)
    columns = [np.concatenate([_numpy(part).ravel() for part in vector]) for vector in vectors]
    model.module.zero_grad(set_to_none=True)
    return values, np.stack(columns, axis=1)


def _matfree(model: JaxModel, problem: Network) -> Callable[[], Any]:
    """Lanczos without restarts, with the fewest steps that bring all pairs to the tolerance."""
    import jax
    from jax.flatten_util import ravel_pytree
    from matfree import decomp, eig

    point, unravel = ravel_pytree(model.params)
    start = model.native(problem.directions())

    def at_depth(depth: int) -> Callable[[], Any]:
        decompose = eig.eigh_partial(decomp.tridiag_sym(depth, custom_vjp=False))

        @jax.jit
        def pairs(point: Any, batch: Any, start: Any) -> Any:
            slope = jax.grad(lambda at: model.loss(unravel(at), batch))
            _, product = jax.linearize(slope, point)
            _, vectors = decompose(product, start)
            return vectors[-_PAIRS:].T

        return lambda: pairs(point, model.batch, start)

    def enough(depth: int) -> bool:
        return problem.eigen_residual(*_rayleigh(problem, _numpy(at_depth(depth)()))) <= _TOL

    return at_depth(bisect_left(_DEPTHS, True, key=enough) + _DEPTHS.start)


def _rayleigh(problem: Network, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    q = vectors / np.linalg.norm(vectors, axis=0)
    return np.sum(q * problem.hessian_product(q), axis=0), q


def _numpy(x: Any) -> np.ndarray:
    return x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)


CASE = Case(
    "eigenpairs",
    "The ten largest eigenpairs",
    {framework: partial(measure, framework) for framework in _BARS},
)
