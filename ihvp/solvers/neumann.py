"""The Neumann series of an inverse as a recursion, with the matrix or with random ones in its place."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.operators.base import LinearOperator, Sampler, Shifted
from ihvp.progress import Monitor
from ihvp.solution import Solution
from ihvp.solvers.base import CountedOperator, Log, relative, true_residual
from ihvp.solvers.rounding import certify
from ihvp.solvers.tolerances import column_sizes

# The spread of the answer is that of so many parts of the paths, or of the repeats if they are more.
_ESTIMATES = 10
# The residual is looked at after each of the first steps, and after every so many: looks wait for the device.
_INTERVAL = 10


@dataclass(frozen=True)
class Series:
    """What is summed: ``A + λI`` and the scale."""

    operator: Shifted  # A + λI
    draw: Sampler | None  # the random matrices that take its place
    scale: float  # σ; 0 stands for a zero matrix
    products: int = 0  # what the scale has cost


@dataclass(frozen=True)
class Course:
    """How far the recursion goes."""

    # depth, repeats: steps of a path, and paths; without random matrices there is one
    depth: int
    repeats: int
    average: float  # the part at the end of a path whose mean is its answer, if the matrices are random
    # The relative residual to certify; 0 for none. A path without random matrices goes on below it, to where
    # rounding leaves little to gain.
    rtol: float
    seed: int  # of the random matrices

    def parts(self) -> tuple[int, int]:
        """The steps at the end of a path that count, and the length of the parts that they are cut into."""
        tail = max(1, round(self.average * self.depth))
        parts = min(math.ceil(_ESTIMATES / self.repeats), tail) if self.average else 1
        length = tail // parts
        return parts * length, length


class Recursion:
    """``s ← v + s − M s / scale``, from ``s = v`` or ``s = scale x₀``, with the answer ``s / scale``.

    Beside the iterate s it holds r, ``v − M s / scale`` with the matrix M of the next step: the way to the
    next iterate, and where M is A the residual of ``s / scale``. Its ``norms`` are from when it was last
    looked at.
    """

    def __init__(
        self, series: Series, course: Course, v: Vector, x0: Vector | None, monitor: Monitor
    ) -> None:
        self.series, self.course, self.v, self.monitor = series, course, v, monitor
        self.sizes = column_sizes(v)
        # No step reaches the solution 0 of v = 0 exactly from elsewhere.
        self._x0 = None if x0 is None else x0 * algebra.coefficients((self.sizes > 0).astype(np.float64), v)
        self.scale = series.scale or 1.0  # may be changed before another run
        self.operator = CountedOperator(series.operator, series.products)
        # The random matrices since the last look but one, among them those that let it grow.
        self.recent: list[LinearOperator] = []
        self._generator = np.random.default_rng(course.seed)
        self.s, self.r, self.norms = v * 0, v, self.sizes
        self._mean = RunningMean()
        self._log = Log(self.sizes, self.sizes, monitor)

    @property
    def sampled(self) -> bool:
        """Whether the matrices are random."""
        return self.series.draw is not None

    def run(self) -> str:
        """All paths from the start, and why they ended: "recursion_depth", "reached" or "diverged"."""
        self.recent = []
        self._generator, self._mean = np.random.default_rng(self.course.seed), RunningMean()
        self._log = Log(self.sizes, self.sizes, self.monitor)
        reason = "recursion_depth"
        # What leaves the range of the dtype is found at the next look.
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(self.course.repeats if self.sampled else 1):
                reason = self._follow()
                if reason == "diverged":
                    break
        return reason

    def _follow(self) -> str:
        """One path, of which the last part goes into the mean."""
        self.s = algebra.copy(self.v) if self._x0 is None else self.scale * self._x0
        tail, length = self.course.parts()
        part: Vector = None
        # A tenth below the tolerance, so that the rounding of the certificate does not decide.
        enough = 0.9 * min(self.course.rtol, self.series.operator.space.product_eps**0.75) * self.sizes
        self._multiply()
        watch = _Watch(self)
        if self._log.iterations == 0:
            self._log = Log(self.sizes, self.norms, self.monitor)
        for step in range(1, self.course.depth + 1):
            if not self.sampled and np.all(self.norms <= enough):
                return "reached"
            self.s = algebra.axpy(self.s, 1.0, self.r)
            if self.sampled and step > self.course.depth - tail:
                part = algebra.copy(self.s) if part is None else algebra.axpy(part, 1.0, self.s)
                if (self.course.depth - step) % length == 0:
                    self._mean.add(part / length)
                    part = None
            self._multiply()
            look = step <= _INTERVAL or step % _INTERVAL == 0
            if not look:
                self._log.repeat()
                continue
            calm = watch.calm(step)
            self._log.step(np.arange(self.sizes.size), self.norms)
            if not calm:
                return "diverged"
        return "recursion_depth"

    def _multiply(self) -> None:
        if self.series.draw is None:
            self.r = algebra.xpay(self.operator.apply(self.s), -1 / self.scale, self.v)
            return
        self.recent.append(self.series.draw(self._generator))
        self.r = self.recent[-1].followed_by(_remainder, self.s, -1 / self.scale, self.v)
        self.operator.products += self.sizes.size

    def solution(self, reason: str) -> Solution:
        """The answer with its certificate, whose residual takes the place of ``r``."""
        averaged = self._mean.value is not None and reason != "diverged"
        with np.errstate(over="ignore", invalid="ignore"):
            x = (self._mean.value if averaged else self.s) / self.scale
        if not algebra.all_finite(x):
            x = self.v * 0
        self.r = true_residual(self.operator, self.v, x)
        targets = self.course.rtol * self.sizes
        certificate = certify(
            self.operator,
            self.v,
            x,
            self.r,
            sizes=self.sizes,
            targets=targets,
            largest=2 * self.scale,  # where it contracts
            shift=self.series.operator.shift,
        )
        self.norms = certificate.norms
        missed = "stagnated" if reason == "reached" else reason
        reasons = np.where(certificate.bounds <= targets, "converged", missed).astype(object)
        solution = self._log.solution(
            x, certificate.bounds, certificate.rounding, reasons, self.operator.products
        )
        error = self._mean.standard_error() if averaged else None
        if error is None:
            return solution
        return dataclasses.replace(solution, standard_error=float(error[0]) if x.ndim == 1 else error)

    def worst(self) -> Vector:
        """The residual of the column where it is largest; that column of ``v`` if it overflowed."""
        place = int(np.argmax(np.nan_to_num(relative(self.norms, self.sizes), nan=np.inf)))
        column = algebra.column(self.r, place)
        return column if algebra.all_finite(column) else algebra.column(self.v, place)


class _Watch:
    """Tells contraction from growth, for a path at its start.

    With one symmetric matrix, ``r_j = (I − A/scale)^j r_0`` and ``‖r_j‖² ≤ ‖r_{j−1}‖ ‖r_{j+1}‖``: once a
    residual grows, it never falls again, and none grows if ``I − A/scale`` contracts. Residuals of random
    matrices fluctuate, but contractions let ``‖s‖`` grow by no more than ``‖v‖`` a step: since the start,
    which tells of slow growth, and since the last look, which tells of a rare batch. A factor of two on each
    bound is for rounding, and for batches that contract only in the mean.
    """

    def __init__(self, path: Recursion) -> None:
        self._path, self._start = path, _norms(path.s)
        self._last_step, self._last = 0, self._start
        path.norms = _norms(path.r)
        noise = path.series.operator.space.product_eps**0.5 * path.sizes
        self._lowest = np.maximum(path.norms, noise)
        self._noise = noise

    def calm(self, step: int) -> bool:
        """Whether nothing has grown beyond its bound; looks at the residual."""
        path = self._path
        path.norms = _norms(path.r)
        if path.sampled:
            bound = np.minimum(
                self._start + step * path.sizes, self._last + (step - self._last_step) * path.sizes
            )
            self._last_step, self._last = step, _norms(path.s)
            calm = bool(np.all(self._last <= 2 * bound))
            if calm:
                # The newest matrix acts at the next step.
                del path.recent[:-1]
            return calm
        calm = bool(np.all(path.norms <= 2 * self._lowest))
        self._lowest = np.maximum(np.fmin(self._lowest, path.norms), self._noise)
        return calm


class RunningMean:
    """The mean of independent estimates of a vector or block, and its standard error.

    By updates that do not cancel (Welford, "Note on a method for calculating corrected sums of squares and
    products", Technometrics 4, 1962).

    Examples
    --------
    >>> import numpy as np
    >>> mean = RunningMean()
    >>> for estimate in ([1.0, 0.0], [3.0, 0.0], [2.0, 0.0]):
    ...     mean.add(np.array(estimate))
    >>> mean.value
    array([2., 0.])
    """

    def __init__(self) -> None:
        self.count = 0
        self.value: Vector = None
        self._squares: NDArray[np.float64] = np.zeros(1)

    def add(self, estimate: Vector) -> None:
        """One more estimate, which is taken over."""
        self.count += 1
        if self.value is None:
            self.value, self._squares = estimate, 0 * _norms(estimate)
            return
        deviation = estimate - self.value
        self._squares = self._squares + _norms(deviation) ** 2 * (self.count - 1) / self.count
        self.value = algebra.axpy(self.value, 1 / self.count, deviation)

    def standard_error(self) -> NDArray[np.float64] | None:
        """Of each column, relative to its mean's norm, with Student's factor for 95 %; None of one estimate.

        The factor is that of a scalar. The norm of a long vector varies less, so that it is on the safe side.
        """
        if self.count < 2:
            return None
        from scipy.special import stdtrit  # a tenth of the time that importing ihvp may take

        student = float(stdtrit(self.count - 1, 0.975))
        return relative(
            student * np.sqrt(self._squares / (self.count * (self.count - 1))), _norms(self.value)
        )


def _remainder(product: Vector, s: Vector, factor: float, v: Vector, _: None) -> Vector:
    return algebra.xpay(product, factor, v)


def _norms(block: Vector) -> NDArray[np.float64]:
    return np.atleast_1d(algebra.norms(block))
