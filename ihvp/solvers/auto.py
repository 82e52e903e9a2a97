"""Choosing the method by what it turns out to cost."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.errors import TooLarge
from ihvp.operators.base import LinearOperator, Shifted
from ihvp.progress import Monitor
from ihvp.solution import Solution
from ihvp.solvers.base import Solver
from ihvp.solvers.cg import CG
from ihvp.solvers.closed_form import ClosedForm, SupportsClosedForm
from ihvp.solvers.direct import Direct, Factorisation, require_matrix
from ihvp.solvers.minres import MinimalResidual
from ihvp.solvers.nystrom import Nystrom, Sketch
from ihvp.solvers.refinement import Refinement
from ihvp.solvers.tolerances import check_tolerances, iteration_limit, relative_tolerance

# Up to this size the matrix itself costs less than finding out whether it is needed.
_TINY = 32

# How many products are timed, and the side of the matrices whose product tells the device's pace.
_MEASURING, _PROBE = 2, 256

# The directions that solves share are made conjugate to one another by 8 P operations for each pair. They may
# be so many that this takes this part of a product's own work, and are not worth it below so many.
_SHARE, _FEWEST = 0.2, 16

# A block of so many columns gains from shared directions itself. Half precision keeps none conjugate, and
# where products take less than so many seconds, the calls that keep directions take longer.
_BLOCK, _COARSE, _QUICK = 4, 1e-4, 1e-3


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

    def measure(self, v: Vector) -> None:
        """Find out what a product costs, and from that what the matrix would."""
        space = self.system.space
        self.seconds, pace = _pace(self.system, v)
        self.work, self.spent = self.seconds * pace, _MEASURING
        try:
            require_matrix(self.system)
        except TooLarge:
            return
        self.price = space.size + space.size**3 / 3 / self.work

    def shared(self, v: Vector) -> Sketch | None:
        """The directions that solves share, from the first block or second vector on, if they pay."""
        if self.sketch is not None:
            return self.sketch
        space = self.system.space
        rank = int(min(_SHARE * self.work / (8 * space.size), Nystrom().most(space)))
        gains = self.spent > _MEASURING or (v.ndim == 2 and v.shape[1] >= _BLOCK)
        if gains and rank >= _FEWEST and self.seconds >= _QUICK and space.product_eps < _COARSE:
            self.sketch = Nystrom(rank=rank).sketch(self.system)
        return self.sketch


@dataclass(frozen=True, kw_only=True)
class Auto(Solver):
    r"""Chooses among :class:`~ihvp.CG`, :class:`~ihvp.MINRES` and :class:`~ihvp.Direct` as it goes.

    An operator with a closed form is solved by that, and a tiny matrix is formed at once. Otherwise CG
    starts; where it meets negative curvature, MINRES goes on from its iterate. Both together may spend as
    much as the matrix and its factorisation would cost: P products and the measured time of :math:`P^3/3`
    operations. Then the matrix is formed after all, if it fits in memory. So the choice costs about twice
    what the better one would have at most (as in renting or buying skis: Karlin, Manasse, Rudolph and
    Sleator, "Competitive snoopy caching", Algorithmica 3, 1988), and rests on what the system shows, not on a
    guess of its condition. Solves with one :func:`~ihvp.inverse` share the account, and the directions that
    earlier ones have taken, as :class:`~ihvp.Nystrom` does, as far as these cost little beside the products
    that they save.

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
        if np.isnan(plan.seconds):
            plan.measure(v)
        return self._iterate(plan, v, x0, monitor)

    def _iterate(self, plan: Plan, v: Vector, x0: Vector | None, monitor: Monitor) -> Solution:
        course = Refinement(
            plan.system, v, rtol=self.rtol, atol=self.atol, x0=x0, monitor=monitor, keeps_last=False
        )
        columns = 1 if v.ndim == 1 else v.shape[1]
        limit = iteration_limit(None, v)

        def within() -> int:
            if np.isinf(plan.price):
                return limit
            left = (plan.price - plan.spent - course.operator.products) / columns
            return min(limit, course.log.iterations + max(int(left), 0))

        cg = CG(rtol=self.rtol, atol=self.atol, preconditioner=plan.shared(v))
        cg.iterate(course, within())
        method, why = "CG", "every direction it met has positive curvature"
        if plan.sketch is not None and plan.sketch.rank:
            why += f", {plan.sketch.rank} of them kept for other solves"
        if course.direction is not None:
            course.direction = None
            course.reopen("indefinite")
            course.run(MinimalResidual, within())
            method, why = "MINRES", "the matrix is indefinite, which CG found"
        solution = course.solution()
        plan.spent += solution.matvecs
        if solution.converged:
            price = "" if np.isinf(plan.price) else f", and the matrix would cost {plan.price:.0f} products"
            return dataclasses.replace(solution, method=f"{method}: {why}{price}")
        if np.isinf(plan.price):
            course.raise_failure(solution, limit, definite=False)
        why = f"{method} spent the {plan.price:.0f} products that the matrix costs"
        return self._direct(plan, v, solution.x, monitor, solution.matvecs, why)

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


def _pace(system: Shifted, v: Vector) -> tuple[float, float]:
    """The seconds of a product with one vector, and the operations a second of products of matrices."""
    space = system.space
    vector = algebra.column(v, 0)
    side = min(space.size, _PROBE)
    block = space.xp.ones((side, side), dtype=space.dtype, device=space.device)
    seconds = _seconds(lambda: system.apply(vector)), _seconds(lambda: block @ block)
    product, matrices = map(space.processes.agreed, seconds)
    return product, 2 * side**3 / matrices


def _seconds(compute: Callable[[], Vector]) -> float:
    compute()  # what is compiled, is compiled once
    start = time.perf_counter()
    # Reading a number waits for devices that compute in the background.
    algebra.norms(compute())
    return max(time.perf_counter() - start, 1e-9)
