"""The direction in which parameters are not determined, where there is no covariance and no posterior."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import SupportsBlocks
from ihvp.eigen.eigsh import eigsh
from ihvp.errors import IndefinitePosterior, NotConverged, SolverError, UndefinedCovariance
from ihvp.objective import Objective
from ihvp.operators import Hessian, LinearOperator
from ihvp.uncertainty.unit_diagonal import UnitDiagonal


def found_undefined(
    operator: LinearOperator, objective: Objective, error: SolverError
) -> UndefinedCovariance | None:
    """The error that names the direction of no curvature; None where that is not why a solve failed."""
    if isinstance(error, NotConverged):
        return None
    matrix = operator
    if isinstance(operator, UnitDiagonal):
        matrix, (lowest, shares) = operator.operator, _of_matrix(operator)
    else:
        lowest, shares = _by_lanczos(operator)
    # A solve that fails for rounding has a condition number above this.
    if lowest > operator.space.product_eps**0.5:
        return None
    negative = lowest < -(operator.space.product_eps**0.5)
    return UndefinedCovariance(
        "Hessian" if isinstance(matrix, Hessian) else "outer product of gradients",
        lowest,
        _parts(objective, shares),
        negative,
    )


def indefinite(
    lowest: float, whitened: LinearOperator, diagonal: NDArray[np.float64], objective: Objective
) -> IndefinitePosterior:
    """The error that names the direction of the lowest eigenvalue; M is whitened by the diagonal."""
    squares = _by_lanczos(whitened)[1] / diagonal
    return IndefinitePosterior(lowest, _parts(objective, squares / squares.sum()))


def _parts(objective: Objective, shares: NDArray[np.float64]) -> dict[str, tuple[float, list[int]]]:
    """Of each block of parameters the share in a direction, and the entries that lead in it."""
    blocks = {"parameters": slice(0, objective.num_params)}
    if isinstance(objective.backend, SupportsBlocks):
        blocks = dict(objective.blocks)
    parts = {}
    for name, place in blocks.items():
        share = shares[place]
        leading = np.argsort(-share)[:4]
        parts[name or "parameters"] = float(share.sum()), [int(i) for i in leading if share[i] > 0.01]
    return parts


def _of_matrix(operator: LinearOperator) -> tuple[float, NDArray[np.float64]]:
    """The lowest eigenvalue, in parts of the largest, and the squared entries of its eigenvector."""
    matrix = np.asarray(algebra.to_numpy(operator.to_dense()), dtype=np.float64)
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return float(values[0] / (np.abs(values).max() or 1.0)), vectors[:, 0] ** 2


def _by_lanczos(operator: LinearOperator) -> tuple[float, NDArray[np.float64]]:
    pairs = eigsh(operator, 2, "BE", confidence=None, max_restarts=20, on_failure="return")
    values, vectors = np.asarray(pairs.values), np.asarray(algebra.to_numpy(pairs.vectors), dtype=np.float64)
    return float(values[-1] / (np.abs(values).max() or 1.0)), vectors[:, -1] ** 2
