"""What every solver has in common: its interface, and the certificate behind ``converged``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.errors import SolverError, VectorError
from ihvp.operators.base import LinearOperator, Measure
from ihvp.progress import Monitor, Step
from ihvp.solution import Solution
from ihvp.solvers.forecast import Forecast, Watch


class Solver(ABC):
    """A method for ``(A + λI) x = v``: a frozen dataclass of its hyper-parameters.

    A solve is split in two, so that many right-hand sides share what depends on the operator alone: a
    factorisation, a preconditioner, a scale.

    Examples
    --------
    >>> import ihvp
    >>> isinstance(ihvp.CG(rtol=1e-8), ihvp.Solver)
    True
    """

    @abstractmethod
    def prepare(self, operator: LinearOperator, damping: float) -> Any:
        """What depends on ``A`` and ``λ`` alone, to be passed to :meth:`apply`."""

    def prepare_shifted(self, operator: LinearOperator, dampings: Sequence[float]) -> Iterator[Any]:
        """:meth:`prepare` for several λ, one when it is asked for; overridden where they share work."""
        return (self.prepare(operator, damping) for damping in dampings)

    @abstractmethod
    def apply(self, prepared: Any, v: Vector, *, x0: Vector | None, monitor: Monitor) -> Solution:
        """Solve for a flat native vector or block.

        Raises
        ------
        SolverError
            The tolerance was not reached; ``.solution`` holds what was, ``x`` flat.
        """

    def attempt(
        self, prepared: Any, v: Vector, *, x0: Vector | None, monitor: Monitor
    ) -> Solution | SolverError:
        """:meth:`apply`, with the error of a failed solve as its result."""
        try:
            return self.apply(prepared, v, x0=x0, monitor=monitor)
        except SolverError as error:
            return error

    def apply_shifted(
        self,
        operator: LinearOperator,
        dampings: Sequence[float],
        v: Vector,
        *,
        x0: Vector | None,
        monitor: Monitor,
    ) -> list[Solution | SolverError]:
        """Solve ``(A + λI) x = v`` for several λ: one answer each, an error in the place of a failed one.

        A method whose iterations can serve all of them overrides this; here they are solved one by one.
        """
        return [
            self.attempt(prepared, v, x0=x0, monitor=monitor)
            for prepared in self.prepare_shifted(operator, dampings)
        ]


@dataclass
class CountedOperator:
    """``A`` that counts the columns it multiplied: the price of a solve."""

    operator: LinearOperator
    products: int = 0

    def apply(self, v: Vector) -> Vector:
        return self.measured(v)[0]

    def measured(self, v: Vector, measure: Measure | None = None) -> tuple[Vector, Any]:
        """``A v``, and ``measure(v, A v)``; NaN for the columns that are not finite."""
        self.products += 1 if v.ndim == 1 else v.shape[1]
        try:
            return self.operator.measured(v, measure)
        except VectorError:
            # What a recurrence has brought beyond the numbers of its dtype is nobody's mistake.
            xp = array_api_compat.array_namespace(v)
            known = xp.isfinite(v)
            finite = np.all(algebra.to_numpy(known), axis=0)
            if np.all(finite):
                raise
            product = self.operator.measured(xp.where(known, v, 0.0))[0]
            product = algebra.scale(product, algebra.coefficients(np.where(finite, 1.0, np.nan), product))
            return product, measure and measure(v, product)


def true_residual(operator: CountedOperator, v: Vector, x: Vector) -> Vector:
    """``v − A x`` with a fresh product: the only thing ``converged`` may rest on."""
    return algebra.subtract_from(v, operator.apply(x))


class Log:
    """The course of a solve: iterations, relative residuals, and the Solution that they end in.

    ``sizes`` are ‖v‖ of each column and ``norms`` ‖v − (A + λI) x‖ before the first step. The watch foretells
    the end, where no limit of iterations was asked for.
    """

    def __init__(
        self,
        sizes: NDArray[np.float64],
        norms: NDArray[np.float64],
        monitor: Monitor,
        watch: Watch | None = None,
    ) -> None:
        self.sizes, self.monitor, self.watch = sizes, monitor, watch
        self.forecast: Forecast | None = None  # why the work is to stop: it would exceed the budget
        self.iterations = 0
        self._current = relative(norms, sizes)
        self._rows = [self._current.copy()]

    def record(self, numbers: NDArray[np.intp], norms: NDArray[np.float64]) -> None:
        """One more iteration, after which the columns ``numbers`` have residuals of size ``norms``."""
        self.iterations += 1
        self._current[numbers] = relative(norms, self.sizes[numbers])
        self._rows.append(self._current.copy())
        if self.watch is not None and self.forecast is None:
            self.forecast = self.watch.look(self._rows)

    def repeat(self) -> None:
        """One more iteration, of which nobody has looked at the residuals: those of the last."""
        self.iterations += 1
        self._rows.append(self._rows[-1])
        self._tell(self.sizes.size)

    def goes_on(self, limit: int) -> bool:
        """Whether another iteration is within the limit and the budget."""
        return self.iterations < limit and self.forecast is None

    def step(self, numbers: NDArray[np.intp], norms: NDArray[np.float64]) -> None:
        """Record an iteration and tell the monitor."""
        self.record(numbers, norms)
        self._tell(numbers.size)

    def _tell(self, active: int) -> None:
        if self.monitor.listens:
            self.monitor.step(Step(self.iterations, float(self._current.max()), active))

    def solution(
        self,
        x: Vector,
        norms: NDArray[np.float64],
        rounding: NDArray[np.float64],
        reasons: NDArray[Any],
        matvecs: int,
    ) -> Solution:
        """The answer; ``norms`` bound recomputed residuals, with their rounding; ``reasons`` follow."""
        converged = bool(np.all(reasons == "converged"))
        failures = sorted(set(reasons) - {"converged"})
        residual, noise = relative(norms, self.sizes), relative(rounding, self.sizes)
        vector, history = x.ndim == 1, np.asarray(self._rows)
        return Solution(
            x=x,
            converged=converged,
            residual=float(residual[0]) if vector else residual,
            iterations=self.iterations,
            matvecs=matvecs,
            stop_reason="converged" if converged else ", ".join(failures),
            history=history[:, 0] if vector else history,
            noise=float(noise[0]) if vector else noise,
        )


def relative(residual: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.float64]:
    """``residual / size``, and 0 where both are 0."""
    return np.divide(residual, size, out=np.where(residual > 0, np.inf, 0.0), where=size > 0)
