"""Random vectors, their products, and what an estimate from them is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.arguments import check_integer
from ihvp.backend import Vector
from ihvp.errors import NonFinite
from ihvp.operators.base import LinearOperator
from ihvp.space import VectorSpace

# Columns that are multiplied at once.
_COLUMNS = 64


@dataclass(frozen=True)
class Estimate:
    """A number, or a vector of them, known from random samples.

    Attributes
    ----------
    value : float or Vector
    standard_error : float or Vector
        The standard deviation of ``value`` over other seeds, as the samples' own scatter tells it; 0 where
        nothing was left to chance. Samples that share their products (XTrace, XDiag) are not independent, and
        may tell a fifth or a fourth too little.
    matvecs : int
        Products with single vectors.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> estimate = ihvp.trace(ihvp.Dense(np.diag([1.0, 2.0, 3.0])))
    >>> float(estimate), estimate.standard_error, estimate.matvecs  # exact, with P products
    (6.0, 0.0, 3)
    """

    value: Any
    standard_error: Any
    matvecs: int

    def __float__(self) -> float:
        return float(self.value)


def checked_count(option: str, asked: int | None, default: int, size: int) -> int:
    """A number of products or steps from 1 to P: the one that was asked for, or the default, or P."""
    count = min(default, size) if asked is None else asked
    check_integer(option, count, 1, size, f"an integer from 1 to P = {size}, the number of parameters")
    return int(count)


def gaussians(space: VectorSpace, generator: np.random.Generator, count: int) -> Vector:
    """Independent standard normal entries, ``(P, count)``."""
    return space.asarray(generator.standard_normal((space.size, count)))


def signs(space: VectorSpace, generator: np.random.Generator, count: int) -> Vector:
    """Independent entries 1 or −1, ``(P, count)``."""
    return space.asarray(generator.choice([-1.0, 1.0], size=(space.size, count)))


def products(operator: LinearOperator, block: Vector) -> Vector:
    """``A`` times a block, some columns at a time."""
    parts = [
        operator.apply(block[:, start : start + _COLUMNS]) for start in range(0, block.shape[1], _COLUMNS)
    ]
    result = parts[0] if len(parts) == 1 else algebra.concatenate(parts)
    if not algebra.all_finite(result):
        raise NonFinite("A product with the operator")
    return result


def identity_products(operator: LinearOperator) -> Iterator[tuple[Vector, Vector]]:
    """Blocks of columns of the identity, and of the matrix."""
    space = operator.space
    for start in range(0, space.size, _COLUMNS):
        columns = space.identity_columns(start, min(start + _COLUMNS, space.size))
        yield columns, products(operator, columns)


def host(block: Vector) -> NDArray[np.float64]:
    """A small matrix as float64 numpy."""
    return np.asarray(algebra.to_numpy(block), dtype=np.float64)


def native(matrix: NDArray[np.float64], like: Vector) -> Vector:
    """A small host matrix in the array type of ``like``."""
    return algebra.as_like(np.ascontiguousarray(matrix), like)
