"""How long a solve will take, from its own pace, and whether that is worth waiting for."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.operators.base import LinearOperator
from ihvp.solvers.ritz import RitzRange, ritz_range

# The budget of a solve without an explicit limit: this time, or this many iterations if they take less.
_SECONDS, _ITERATIONS = 600.0, 1000
# A forecast is made after so many iterations, and whenever their number has doubled. Forecasts are good to a
# factor of about 3, early ones to less: the budget must be exceeded by these factors.
_LOOKS = {25: 6.0, 50: 6.0, 100: 2.0}
# From so many iterations on, a residual that stays, or falls ever more slowly, is taken to go on so; how many
# iterations that makes is told to a factor of about 3 again.
_SETTLED, _UNSURE = 100, 3.0
# Where the residual does not fall yet, steps of Lanczos' method tell the condition, and the lowest Ritz value
# still falls with the square of their number: the bound of Chebyshev is short by about this factor.
_STEPS, _UNSEEN = 40, 4.0
_TINY = np.finfo(float).tiny


@dataclass(frozen=True)
class Forecast:
    """What a solve would take from its start."""

    iterations: float  # until the slowest column has reached its target; infinite where no progress is seen
    columns: int  # that are multiplied in an iteration
    seconds: float


class Watch:
    """Looks at the course of a solve now and then, and says when it will not end within the budget.

    The forecast extrapolates the pace of the residual over the later half of the iterations, and its change
    since the earlier half. While the residual does not fall, or slows down, the forecast rests on the
    condition that a few Lanczos steps see, by the bound of Chebyshev on conjugate gradients (Saad, "Iterative
    Methods for Sparse Linear Systems", 2003, section 6.11.3).

    ``system`` is ``A + λI``, and ``targets`` are the relative residuals to reach.
    """

    def __init__(self, system: LinearOperator, v: Vector, targets: NDArray[np.float64]) -> None:
        self._system, self._v, self._targets = system, v, targets
        self._since, self._start = 0, time.perf_counter()

    def restart(self, iterations: int) -> None:
        """Another recurrence begins after so many iterations, at a pace of its own."""
        self._since, self._start = iterations, time.perf_counter()

    def look(self, rows: Sequence[NDArray[np.float64]]) -> Forecast | None:
        """The forecast, if it exceeds the budget; None elsewhere, and where it is not the time to look.

        ``rows`` are the relative residuals before the first iteration and after each, ``(k,)``.
        """
        done = len(rows) - 1 - self._since
        if done not in _LOOKS and (done < 200 or done & (done - 1)):
            return None
        margin = _LOOKS.get(done, 2.0)
        each = self._system.space.processes.agreed(time.perf_counter() - self._start) / done
        if each * _ITERATIONS < _SECONDS / 100:
            return None  # even a hundred times as many iterations are affordable
        pending = rows[-1] > self._targets
        if not np.any(pending):
            return None
        course = np.log(np.maximum(np.stack(rows[-done:])[:, pending], _TINY))
        targets = self._targets[pending]

        def affordable(left: float) -> bool:
            return left * each <= margin * _SECONDS or done + left <= margin * _ITERATIONS

        left = _left_at_steady_pace(course, targets)
        if not left < math.inf:
            # Conjugate gradients may begin so and be quick later.
            left = self._by_condition(targets) if done >= _SETTLED else 0.0
        elif affordable(left) and done >= _SETTLED:
            left = _left_at_slowing_pace(course, targets) / _UNSURE
            left = left if affordable(left) else min(left, self._by_condition(targets))
        if affordable(left):
            return None
        total = self._since + done + left
        return Forecast(total, int(np.count_nonzero(pending)), total * each)

    def products_left(self, rows: Sequence[NDArray[np.float64]]) -> float:
        """The products until all columns are there, at the pace of the later half of the iterations.

        Infinite while the residual of a column does not fall.
        """
        done = len(rows) - 1 - self._since
        pending = rows[-1] > self._targets
        before, now = (np.log(np.maximum(rows[at][pending], _TINY)) for at in (-1 - (done + 1) // 2, -1))
        pace = (now - before) / ((done + 1) // 2)
        if np.any(pace >= 0):
            return math.inf
        left = (np.log(np.maximum(self._targets[pending], _TINY)) - now) / pace
        return float(left.max(initial=0.0)) * int(np.count_nonzero(pending))

    def _by_condition(self, targets: NDArray[np.float64]) -> float:
        return _UNSEEN * iterations_of_cg(self._ritz, float(targets.min()))

    @cached_property
    def _ritz(self) -> RitzRange:
        return ritz_range(self._system.apply, algebra.column(self._v, 0), _STEPS)


def _left_at_steady_pace(course: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
    """The iterations until the slowest column is there, at the pace of the later half; infinite without any.

    ``course`` are the logarithms of the residuals after each iteration, ``(n, k)``.
    """
    pace = _pace(course[len(course) - len(course) // 2 :])
    if np.any(pace >= 0):
        return math.inf
    return float(np.max((np.log(targets) - course[-1]) / pace))


def _left_at_slowing_pace(course: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
    """The same if the pace goes on to change with the power of the iterations by which it changed so far.

    So it does where eigenvalues reach across zero without a gap: no iteration of MINRES gets better than the
    last by a factor.
    """
    n = len(course)
    late, early = _pace(course[n - n // 2 :]), _pace(course[n // 4 : n - n // 2])
    if np.any(late >= 0):
        return math.inf
    power = 1 - np.clip(np.log2(np.minimum(early, late) / late), 0.0, 0.99)
    # ∫ c k^(power - 1) dk from n to the total is what is missing; the pace is that in the middle of the half.
    missing = (np.log(targets) - course[-1]) * power / (late * (0.75 * n) ** (1 - power))
    return float(np.max((n**power + missing) ** (1 / power))) - n


def _pace(course: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean change of each column in an iteration."""
    return np.polyfit(np.arange(len(course)), course, 1)[0]  # type: ignore[no-any-return]


def iterations_of_cg(ritz: RitzRange, rtol: float, added: float = 0.0) -> float:
    """How many iterations of CG reach ``rtol``, if the Ritz values are the ends of the spectrum.

    ``√κ/2 log(2√κ/rtol)``, with κ the condition after ``added`` damping; infinite where that is not definite.
    """
    lowest, highest = ritz.lowest + added, ritz.highest + added
    if not lowest > 0 or rtol <= 0:
        return math.inf
    root = math.sqrt(highest / lowest)
    return max(1.0, root / 2 * math.log(2 * root / min(rtol, 1.0)))


def damping_for(ritz: RitzRange, rtol: float, iterations: float) -> float:
    """The damping to add so that CG takes about so many iterations, rounded up to one digit."""
    root = 2.0
    for _ in range(20):  # contracts quickly, as the logarithm hardly changes
        root = max(2 * iterations / math.log(2 * root / min(max(rtol, 1e-15), 1.0)), 2.0)
    condition = root**2
    needed = max((ritz.highest - condition * ritz.lowest) / (condition - 1), 0.0)
    if needed == 0:
        return 0.0
    digit = 10.0 ** math.floor(math.log10(needed))
    return math.ceil(needed / digit) * digit


def duration(seconds: float) -> str:
    """A time as an error text gives it.

    >>> duration(20.0), duration(700.0), duration(12_000.0), duration(3e5)
    ('20 seconds', '12 minutes', '3.3 hours', '3.5 days')
    """
    for unit, length, limit in (("seconds", 1, 120), ("minutes", 60, 7200), ("hours", 3600, 172_800)):
        if seconds < limit:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds / 86_400:.2g} days" if math.isfinite(seconds) else "no end in sight"
