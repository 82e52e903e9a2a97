"""The central difference formulas and the length of their step.

With ``d = r v``, the derivative of the gradient g along v at x is

    order 2:  (g(x+d) − g(x−d)) / 2r                                 + O(r²)
    order 4:  (8 (g(x+d) − g(x−d)) − (g(x+2d) − g(x−2d))) / 12r      + O(r⁴)

(Abramowitz and Stegun, Handbook of Mathematical Functions, section 25.3).

The error is the truncation above plus rounding, about ``ε ‖g‖ / r``. Their sum is least at
``r ∝ ε^(1/(order + 1))`` times the length over which g changes (Press et al., Numerical Recipes, 5.7),
for which ``1 + ‖x‖`` is the usual measure in many dimensions (Knoll and Keyes, Jacobian-free
Newton–Krylov methods, J. Comput. Phys. 193, 2004).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ihvp.backend import Vector

_WEIGHTS = {2: (1.0,), 4: (8.0, -1.0)}
_DIVISOR = {2: 2.0, 4: 12.0}
# A network's gradient changes along single weights and sharp eigenvectors well before the weights have
# moved by 1 + ‖x‖. On tanh networks these fractions keep truncation and rounding in balance over random,
# one-hot, gradient and eigenvector directions; order 4 reaches out twice as far, to x ± 2d.
_FRACTION = {2: 0.1, 4: 0.05}

ORDERS = tuple(_WEIGHTS)


def central_difference(difference: Callable[[float], Vector], step: float, order: int) -> Vector:
    """``g'(x) · d / step`` from ``difference(m step) = g(x + m d) − g(x − m d)``, ``order`` calls of g."""
    (first, *others) = _WEIGHTS[order]
    total = difference(step)
    if first != 1.0:
        total *= first
    for multiple, weight in enumerate(others, start=2):
        term = difference(multiple * step)
        term *= weight
        total += term
    total *= 1 / (_DIVISOR[order] * step)
    return total


def automatic_length(x_norm: float, epsilon: float, order: int) -> float:
    """The length ``‖r v‖`` of the automatic step: a fraction of ``ε^(1/(order + 1)) (1 + ‖x‖)``."""
    return float(_FRACTION[order] * epsilon ** (1 / (order + 1)) * (1 + x_norm))


def power_of_two(value: float) -> float:
    """The power of two just below ``value``: multiplying and dividing by it is free of rounding.

    That is what is left, in many dimensions, of the trick of dividing by ``(x + r) − x`` in place of r:
    the components of ``(x + d) − x`` are rounded independently, so that no one number corrects them.
    """
    return math.ldexp(1.0, math.frexp(value)[1] - 1)


def norm(v: Vector) -> float:
    """``‖v‖₂`` of a vector that is not empty, where squares overflow or vanish in its dtype too."""
    xp: Any = array_namespace(v)
    info = xp.finfo(v.dtype)
    if info.bits >= 32:
        with np.errstate(all="ignore"):
            # numpy's own loop, for waking BLAS's threads takes longer than the sum.
            is_numpy = isinstance(v, np.ndarray)
            plain = math.sqrt(np.einsum("i,i", v, v)) if is_numpy else float(xp.linalg.vector_norm(v))
        if math.sqrt(float(info.smallest_normal) / float(info.eps)) <= plain < math.inf:
            return plain
    largest = float(xp.max(xp.abs(v)))
    if largest == 0.0:
        return 0.0
    scaled = v / power_of_two(largest)
    if info.bits < 32:
        scaled = xp.astype(scaled, xp.float32)
    return power_of_two(largest) * float(xp.linalg.vector_norm(scaled))
