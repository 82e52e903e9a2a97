"""What a solve is asked for: tolerances, a limit of iterations, and right-hand sides whose squares exist."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.arguments import check_integer, check_number
from ihvp.backend import Vector
from ihvp.errors import InvalidOption, VectorError
from ihvp.space import VectorSpace

# Sizes whose squares, and those of residuals far smaller, stay in the range of float64.
_SIZES = 1e-130, 1e130
# Half precision has a machine epsilon above it, and float32 far below.
_COARSE = 1e-4


def check_tolerances(rtol: Any, atol: Any, max_iterations: Any) -> None:
    """Reject hyper-parameters that no iteration could meet."""
    for name, value in (("rtol", 1.0 if rtol is None else rtol), ("atol", atol)):
        check_number(name, value, lambda number: number >= 0, "a finite number ≥ 0")
    check_integer("max_iterations", max_iterations, 0, none=True)
    if rtol == 0 and atol == 0 and max_iterations is None:
        raise InvalidOption(
            "rtol, atol",
            (rtol, atol),
            "one of them above 0, or a max_iterations, since rounding keeps the residual above 0",
        )


def relative_tolerance(rtol: float | None, space: VectorSpace) -> float:
    """``rtol``, or by default 1e-5, and where products are in half precision the root of its epsilon."""
    if rtol is not None:
        return rtol
    return 1e-5 if space.product_eps < _COARSE else space.product_eps**0.5


def iteration_limit(max_iterations: int | None, v: Vector) -> int:
    """The limit asked for, or ten times P and at least 100."""
    return max(10 * v.shape[0], 100) if max_iterations is None else max_iterations


def column_sizes(v: Vector) -> NDArray[np.float64]:
    """``‖v‖`` of each column, ``(k,)``.

    A VectorError says that the square of one would leave the range of float64.
    """
    sizes = np.atleast_1d(algebra.norms(v))
    if np.any((sizes > 0) & ((sizes < _SIZES[0]) | (sizes > _SIZES[1]))):
        raise VectorError(
            f"The columns of v have sizes {sizes.min():.1e} to {sizes.max():.1e}; expected sizes between "
            f"{_SIZES[0]:.0e} and {_SIZES[1]:.0e}, whose squares are numbers. Scale v, and x back."
        )
    return sizes
