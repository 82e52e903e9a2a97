"""Choosing the method by what it turns out to cost."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.errors import TooLarge
from ihvp.operators.base import LinearOperator, Shifted
from ihvp.progress import Monitor
from ihvp.solution import Solution
from ihvp.solvers.base import CountedOperator, Solver, relative
from ihvp.solvers.cg import CG
from ihvp.solvers.closed_form import ClosedForm, SupportsClosedForm
from ihvp.solvers.direct import Direct, Factorisation, require_matrix
from ihvp.solvers.forecast import Forecast, Watch
from ihvp.solvers.minres import MinimalResidual
from ihvp.solvers.nystrom import Nystrom, Sketch
from ihvp.solvers.refinement import Refinement
from ihvp.solvers.tolerances import check_tolerances, column_sizes, iteration_limit, relative_tolerance

# Up to this size the matrix itself costs less than finding out whether it is needed.
_TINY = 32

# The side of the matrices whose product tells the device's pace.
_PROBE = 256

# The directions that solves share are made conjugate to one another by 8 P operations for each pair. They may
# be so many that this takes this part of a product's own work, and are not worth it below so many.
_SHARE, _FEWEST = 0.2, 16

# A block of so many columns gains from shared directions itself. Half precision keeps none conjugate, and
# where the products of an iteration take less than so many seconds, the calls that keep directions take more.
_BLOCK, _COARSE, _QUICK = 4, 1e-4, 5e-3

# An iteration with a block of k columns takes about so many times P k² operations beside the product, and few
# blocks are solved in fewer than so many.
_OPERATIONS, _ITERATIONS = 12, 2

# From this part of the matrix' products on, a forecast is made after each iteration.
_EARLY = 0.25


@dataclass
class Plan:
    """What is known of a system, and what was spent on it so far.

    Attributes
    ----------
    system : Shifted
        ``A + λI``.
    seconds : float
        Of a product with one vector; NaN before it is measured.
    work : float
        The same in operations of products of matrices that the device does meanwhile.
    price : float
        What solving with the matrix itself would cost, in products with one vector; infinite where it does
        not fit in memory.
    spent : int
        Products that iterative methods have taken.
    sketch : Sketch or None
        The directions of earlier solves, where these pay.
    factorisation : Factorisation or None
        Of the matrix, once that was worth its price.
    """

    system: Shifted
    seconds: float = np.nan
    work: float = np.nan
    price: float = np.inf
    spent: int = 0
    sketch: Sketch | None = field(default=None, repr=False)
    factorisation: Factorisation | None = field(default=None, repr=False)

    def measure(self, operator: CountedOperator, v: Vector) -> None:
        """Find out what a product costs, and from that what the matrix would, where that is not known."""
        if not np.isnan(self.seconds):
            return
        space = self.system.space
        self.seconds, pace = _pace(operator, v)
        self.work = self.seconds * pace
        try:
            require_matrix(self.system)
        except TooLarge:
            return
        self.price = space.size + space.size**3 / 3 / self.work

    def gains(self, columns: int) -> bool:
        """Whether solves for so many columns may gain from directions that they share."""
        return self.sketch is not None or self.spent > 0 or columns >= _BLOCK

    def shared(self, columns: int) -> Sketch | None:
        """The directions that solves share, where they pay; what a product costs is known."""
        space = self.system.space
        if self.sketch is None and self.seconds * columns >= _QUICK and space.product_eps < _COARSE:
            rank = int(min(_SHARE * self.work / (8 * space.size), Nystrom().most(space)))
            self.sketch = Nystrom(rank=rank).sketch(self.system) if rank >= _FEWEST else None
        return self.sketch

    def matrix_pays(self, columns: int) -> bool:
        """Whether the matrix costs less than the fewest iterations, or earlier solves have cost as much."""
        size = self.system.space.size
        solving = 2 * size**2 * columns / self.work
        iteration = columns + _OPERATIONS * size * columns**2 / self.work
        return self.spent >= self.price or self.price + solving <= _ITERATIONS * iteration


class _MatrixPays(Exception):
    """The iterations to come cost more than the matrix."""


class _Account(Watch):
    """Looks after each iteration whether those to come cost more than the matrix.

    With s products spent, r more foretold and the price p of the matrix, it takes the matrix where r s > p²:
    what would be lost by a wrong forecast is held against what was spent already. At the price itself, that
    is the cheaper of both. At twice the price it is taken in any case.
    """

    def __init__(self, plan: Plan, course: Refinement) -> None:
        super().__init__(plan.system, course.v, relative(course.targets, column_sizes(course.v)))
        self._plan, self._operator, self._begun = plan, course.operator, course.operator.products

    def restart(self, iterations: int) -> None:
        super().restart(iterations)
        self._begun = self._operator.products

    def look(self, rows: Sequence[NDArray[np.float64]]) -> Forecast | None:
        plan, size = self._plan, self._system.space.size
        spent = plan.spent + self._operator.products
        if self._operator.products - self._begun >= _EARLY * size or spent >= 2 * size:
            plan.measure(self._operator, self._v)
            left = self.products_left(rows)
            if plan.sketch is not None and plan.sketch.most == size:
                left = min(left, size - plan.sketch.rank)  # conjugate directions are no more than P
            if np.isfinite(plan.price) and (spent >= 2 * plan.price or left * spent > plan.price**2):
                raise _MatrixPays
        return super().look(rows)


@dataclass(frozen=True, kw_only=True)
class Auto(Solver):
    r"""Chooses among :class:`~ihvp.CG`, :class:`~ihvp.MINRES` and :class:`~ihvp.Direct` as it goes.

    An operator with a closed form is solved by that, and a tiny matrix is formed at once. Otherwise CG
    starts; where it meets negative curvature, MINRES goes on from its iterate. What both have spent and the
    pace of the residuals are held against the price of the matrix and its factorisation: P products and the
    measured time of :math:`P^3/3` operations. Where going on costs more, the matrix is formed, if it fits in
    memory: early if the forecast leaves no doubt, and at twice that price in any case. So the choice costs
    about as much as the better one where the forecast is good, and at most three times as much where it is
    wrong (as in renting or buying skis: Karlin, Manasse, Rudolph and Sleator, "Competitive snoopy caching",
    Algorithmica 3, 1988). A block of about P columns takes the matrix at once. Solves with one
    :func:`~ihvp.inverse` share the account. The columns of a block, and later solves, share the directions
    that were taken, as :class:`~ihvp.Nystrom` does, as far as these cost little beside the products that they
    save.

    :class:`~ihvp.Influence` with an ``ihvp.GaussNewton`` does without vectors of the parameters where it can:
    it solves in the space of the examples' outputs, whose Gram matrix small factors of each layer make.

    ``Solution.method`` says what was chosen and why. Unlike the solvers it chooses from, it answers for
    indefinite matrices too: the solution is then a saddle point, and ``method`` says so.

    Parameters
    ----------
    rtol : float, optional
        A column is solved when ``‖v − (A + λI) x‖ ≤ max(rtol ‖v‖, atol)``. By default 1e-5; for parameters in
        half precision the square root of its machine epsilon: 0.03 in float16, 0.09 in bfloat16.
    atol : float

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> solution = ihvp.solve(ihvp.Dense(np.diag([4.0, 2.0])), np.ones(2), solver="auto")
    >>> solution.x, solution.method
    (array([0.25, 0.5 ]), 'Direct: P = 2 is tiny')
    """

    rtol: float | None = None
    atol: float = 0.0

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol, None)

    def prepare(self, operator: LinearOperator, damping: float) -> Plan:
        return Plan(Shifted(operator, damping))

    def apply(self, prepared: Plan, v: Vector, *, x0: Vector | None, monitor: Monitor) -> Solution:
        plan, operator = prepared, prepared.system.operator
        if self.rtol is None:
            rtol = relative_tolerance(None, operator.space)
            return dataclasses.replace(self, rtol=rtol).apply(plan, v, x0=x0, monitor=monitor)
        if isinstance(operator, SupportsClosedForm):
            closed = ClosedForm(rtol=self.rtol, atol=self.atol)
            solution = closed.apply(closed.prepare(operator, plan.system.shift), v, x0=x0, monitor=monitor)
            return dataclasses.replace(solution, method="ClosedForm: the operator knows its inverse")
        if plan.factorisation is not None:
            return self._direct(plan, v, x0, monitor, 0, "the matrix is factorised already")
        if operator.space.size <= _TINY:
            return self._direct(plan, v, x0, monitor, 0, f"P = {operator.space.size} is tiny")
        return self._iterate(plan, v, x0, monitor)

    def _iterate(self, plan: Plan, v: Vector, x0: Vector | None, monitor: Monitor) -> Solution:
        course = Refinement(
            plan.system, v, rtol=self.rtol, atol=self.atol, x0=x0, monitor=monitor, keeps_last=False
        )
        course.log.watch = _Account(plan, course)
        columns = 1 if v.ndim == 1 else v.shape[1]
        method, why, cg = (
            "CG",
            "every direction it met has positive curvature",
            CG(rtol=self.rtol, atol=self.atol),
        )
        try:
            if plan.gains(columns):
                plan.measure(course.operator, v)
                if plan.matrix_pays(columns):
                    raise _MatrixPays
                cg = dataclasses.replace(cg, preconditioner=plan.shared(columns))
            limit = iteration_limit(None, v)
            cg.iterate(course, limit)
            if plan.sketch is not None and plan.sketch.rank:
                why += f", {plan.sketch.rank} of them kept for other solves"
            if course.direction is not None:
                course.direction = None
                course.reopen("indefinite")
                method, why = "MINRES", "the matrix is indefinite, which CG found"
                course.run(MinimalResidual, limit)
        except _MatrixPays:
            spent = course.operator.products
            plan.spent += spent
            why = f"the {plan.price:.0f} products that the matrix costs are fewer than {method} would take"
            return self._direct(plan, v, x0, monitor, spent, why)
        solution = course.solution()
        plan.spent += solution.matvecs
        if solution.converged:
            price = "" if np.isinf(plan.price) else f", and the matrix would cost {plan.price:.0f} products"
            return dataclasses.replace(solution, method=f"{method}: {why}{price}")
        plan.measure(course.operator, v)
        if np.isinf(plan.price):
            course.raise_failure(solution, limit, definite=False)
        return self._direct(plan, v, solution.x, monitor, solution.matvecs, f"{method} does not converge")

    def _direct(
        self, plan: Plan, v: Vector, x0: Vector | None, monitor: Monitor, spent: int, why: str
    ) -> Solution:
        direct = Direct(rtol=self.rtol, atol=self.atol, on_indefinite="solve")
        if plan.factorisation is None:
            plan.factorisation = direct.prepare(plan.system.operator, plan.system.shift)
        solution = direct.apply(plan.factorisation, v, x0=x0, monitor=monitor)
        if plan.factorisation.indefinite:
            why += "; the matrix is indefinite"
        return dataclasses.replace(solution, matvecs=solution.matvecs + spent, method=f"Direct: {why}")


def _pace(operator: CountedOperator, v: Vector) -> tuple[float, float]:
    """The seconds of a product with one vector, and the operations a second of products of matrices."""
    space = operator.operator.space
    vector = algebra.column(v, 0)
    side = min(space.size, _PROBE)
    block = space.xp.ones((side, side), dtype=space.dtype, device=space.device)
    seconds = _seconds(lambda: operator.apply(vector)), _seconds(lambda: block @ block)
    product, matrices = map(space.processes.agreed, seconds)
    return product, 2 * side**3 / matrices


def _seconds(compute: Callable[[], Vector]) -> float:
    compute()  # what is compiled, is compiled once
    start = time.perf_counter()
    # Reading a number waits for devices that compute in the background.
    algebra.norms(compute())
    return max(time.perf_counter() - start, 1e-9)
