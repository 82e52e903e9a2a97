"""LiSSA: the inverse as a Neumann series, by products with the matrix or with batches of examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ihvp import algebra
from ihvp.arguments import check_choice, check_flag, check_integer, check_number, check_seed
from ihvp.backend import Vector
from ihvp.errors import Diverged, NotConverged, NothingToSample, SolverError
from ihvp.operators.base import LinearOperator, Sampler, Shifted
from ihvp.progress import Monitor
from ihvp.solution import Solution
from ihvp.solvers import contraction, diagnosis
from ihvp.solvers.base import CountedOperator, Solver
from ihvp.solvers.neumann import Course, Recursion, Series

# Batches whose curvature is measured for a scale.
_PROBES = 10
# Scales that are tried before a divergence is final.
_ATTEMPTS = 10


@dataclass(frozen=True, kw_only=True)
class LiSSA(Solver):
    r"""The stochastic recursion of LiSSA, for a positive definite :math:`A + \lambda I`.

    .. math:: s_{j+1} = v + \left(1 - \frac{\lambda}{\sigma}\right) s_j - \frac{1}{\sigma} \tilde A_j s_j,
              \qquad s_0 = v, \qquad x = s / \sigma

    with the scale σ and :math:`\tilde A_j` the matrix of a random batch of examples, or A itself. It sums the
    Neumann series of the inverse and contracts where all eigenvalues of :math:`A + \lambda I` lie between 0
    and 2σ, by :math:`1 - \lambda_{\min} / \sigma` a step; the answer does not depend on σ (Agarwal, Bullins
    and Hazan, "Second-order stochastic optimization for machine learning in linear time", Journal of Machine
    Learning Research 18, 2017; Koh and Liang, "Understanding black-box predictions via influence functions",
    2017, section 3, whose code multiplies the damping by σ).

    Parameters
    ----------
    scale : float or "auto"
        σ. "auto" takes 1.1 times the largest eigenvalue of :math:`A + \lambda I`, or of the largest of ten
        batches, by a few Lanczos steps, and a larger one where that diverges.
    recursion_depth : int
        The number of steps. Without batches, fewer where rounding leaves little to gain from more: at a
        relative residual of ε^(3/4), or ``rtol`` if that is smaller.
    num_samples : int
        Independent repeats, whose mean is the answer. Without batches there is nothing to repeat.
    batch_size : int, optional
        The number of examples of a batch. None: every step multiplies with A itself.
    replace : bool
        Whether an example may occur in a batch twice. Batches are independent either way, so that the
        expectation of every step is that of the recursion with A; the variance is (N − B) / (N − 1) times as
        large without replacement.
    average : float
        With batches, the part at the end of each path whose mean is the answer. Its noise falls with the
        depth; that of the last iterate alone, ``average=0``, stays (Polyak and Juditsky, "Acceleration of
        stochastic approximation by averaging", SIAM Journal on Control and Optimization 30, 1992).
    rtol : float, optional
        A column is solved when ``‖v − (A + λI) x‖ ≤ rtol ‖v‖``. None goes the whole depth, only certifies the
        answer and raises for divergence alone.
    on_divergence : {"raise", "rescale"}
        Whether a scale that is too small is an error, or the recursion starts anew with a larger one.
    seed : int
        Of the batches. The same seed draws the same batches for every right-hand side.

    Raises
    ------
    InvalidOption
        An option is out of range, or a batch is larger than the data.
    NothingToSample
        ``batch_size`` is given and the operator is no mean over examples.

    Notes
    -----
    ``history`` has the residual that the recursion itself sees, with batches that of one batch: after each of
    the first ten steps and every tenth, and the last one seen in between. ``matvecs`` counts a product with a
    batch like any other. ``standard_error`` is that of the mean over the repeats, or over parts of the paths
    where they are fewer than ten; it knows nothing of the bias of a recursion that is too short, which is in
    the residual.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> A = ihvp.Dense(np.array([[4.0, 1.0], [1.0, 3.0]]))
    >>> ihvp.solve(A, np.array([1.0, 2.0]), solver=ihvp.LiSSA(rtol=1e-10)).x.round(6)
    array([0.090909, 0.636364])
    """

    scale: float | Literal["auto"] = "auto"
    recursion_depth: int = 5000
    num_samples: int = 1
    batch_size: int | None = None
    replace: bool = True
    average: float = 0.5
    rtol: float | None = 0.05
    on_divergence: Literal["raise", "rescale"] = "raise"
    seed: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.scale, str) and self.scale == "auto"):
            check_number("scale", self.scale, _is_positive, "a finite number > 0, or 'auto'")
        check_integer("recursion_depth", self.recursion_depth, 1)
        check_integer("num_samples", self.num_samples, 1)
        expected = "an integer ≥ 1, or None for the operator itself"
        check_integer("batch_size", self.batch_size, 1, expected=expected, none=True)
        check_flag("replace", self.replace)
        within = "a number between 0 and 1, a part of the path"
        check_number("average", self.average, lambda part: 0 <= part <= 1, within)
        if self.rtol is not None:
            check_number("rtol", self.rtol, _is_positive, "a finite number > 0, or None")
        check_choice("on_divergence", self.on_divergence, ("raise", "rescale"))
        check_seed(self.seed)

    def prepare(self, operator: LinearOperator, damping: float) -> Series:
        shifted = Shifted(operator, damping)
        draw = None
        if self.batch_size is not None:
            draw = shifted.sampler(self.batch_size, replace=self.replace)
            if draw is None:
                raise NothingToSample(f"LiSSA(batch_size={self.batch_size})", operator)
        if self.scale != "auto":
            return Series(shifted, draw, float(self.scale))
        generator = np.random.default_rng(self.seed)
        start = shifted.space.asarray(generator.standard_normal(shifted.space.size))
        probes = _probes(shifted, draw, generator)
        scale = contraction.contracting_scale(probes, start)
        return Series(shifted, draw, scale, sum(probe.products for probe in probes))

    def apply(self, prepared: Series, v: Vector, *, x0: Vector | None, monitor: Monitor) -> Solution:
        course = Course(self.recursion_depth, self.num_samples, self.average, self.rtol or 0.0, self.seed)
        recursion = Recursion(prepared, course, v, x0, monitor)
        if prepared.scale == 0 and np.any(recursion.sizes):
            ritz = contraction.spectrum(recursion.operator, recursion.worst())
            raise contraction.no_series(recursion.solution("indefinite"), prepared.operator, ritz)
        rescales = self.scale == "auto" or self.on_divergence == "rescale"
        for attempt in range(_ATTEMPTS):
            reason = recursion.run()
            if reason != "diverged":
                break
            cause = self._growth(recursion)
            if cause is None:
                reason = "stagnated"
                break
            if not rescales or not isinstance(cause, Diverged) or attempt == _ATTEMPTS - 1:
                raise cause
            recursion.scale = cause.suggested_scale
        solution = recursion.solution(reason)
        if self.rtol is None or solution.converged:
            return solution
        raise self._failure(recursion, solution, self.rtol)

    def _growth(self, recursion: Recursion) -> SolverError | None:
        """Why the recursion grew; None where the growth is noise around the answer."""
        operator = recursion.series.operator
        start = recursion.worst()
        ritz = contraction.spectrum(recursion.operator, start)
        suggested = contraction.larger_scale(ritz)
        if recursion.sampled:
            probes = [CountedOperator(matrix) for matrix in recursion.recent]
            suggested = max(suggested, contraction.contracting_scale(probes, start))
            # Batches may also be expanding together, none of them by itself.
            suggested = max(suggested, 2 * recursion.scale)
            recursion.operator.products += sum(probe.products for probe in probes)
        indefinite = contraction.is_indefinite(operator, ritz, start)
        if not recursion.sampled and not indefinite and ritz.highest <= 2 * recursion.scale:
            return None
        solution = recursion.solution("diverged")
        if indefinite:
            return contraction.no_series(solution, operator, ritz)
        return contraction.diverged(solution, recursion.scale, suggested)

    def _failure(self, recursion: Recursion, solution: Solution, rtol: float) -> SolverError:
        """Why the certificate misses the tolerance."""
        operator, residual = recursion.series.operator, np.atleast_1d(solution.residual)
        worst = int(np.argmax(residual))
        if solution.stop_reason == "stagnated":
            v, x = (algebra.column(block, worst) for block in (recursion.v, solution.x))
            return diagnosis.stagnated(operator, solution, rtol, v, x)
        start = recursion.worst()
        ritz = contraction.spectrum(recursion.operator, start)
        if contraction.is_indefinite(operator, ritz, start):
            return contraction.no_series(solution, operator, ritz)
        if not recursion.sampled and ritz.highest > 2 * recursion.scale:
            return contraction.diverged(solution, recursion.scale, contraction.larger_scale(ritz))
        pace = ritz.lowest / recursion.scale
        slowest = (
            f" Along the smallest curvature seen, {ritz.lowest:.1e}, a step at scale {recursion.scale:.3g} "
            f"takes {pace:.0e} of the error away."
            if pace > 0
            else ""
        )
        more = "recursion_depth, num_samples or batch_size" if recursion.sampled else "recursion_depth"
        return NotConverged(
            f"{solution.iterations} steps brought the residual to {residual[worst]:.1e}, above the tolerance "
            f"{rtol:.1e}.{slowest} Raise {more}, loosen rtol, add damping, or use CG.",
            solution,
        )


def _probes(operator: Shifted, draw: Sampler | None, generator: np.random.Generator) -> list[CountedOperator]:
    """The matrix itself, or a few that the recursion may draw."""
    if draw is None:
        return [CountedOperator(operator)]
    return [CountedOperator(draw(generator)) for _ in range(_PROBES)]


def _is_positive(number: float) -> bool:
    return number > 0
