"""The residuals of solves, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ihvp.errors import NothingToDraw
from ihvp.plot.style import NEUTRAL, axes, curves
from ihvp.solution import Solution


def convergence(
    solutions: Solution | Mapping[str, Solution] | Sequence[Solution],
    ax: Any = None,
    *,
    rtol: float | None = None,
) -> Any:
    r"""The relative residual :math:`\|v - (A + \lambda I) x\| / \|v\|` after each step of solves.

    The line is ``Solution.history``, by the method's own recurrence; each column of a block has one. The
    marker at its end is ``Solution.residual``, recomputed with a fresh product: filled where the solve
    converged, and a cross where it did not. A residual of exactly 0 has no place on the logarithmic axis.

    Parameters
    ----------
    solutions : Solution, mapping of str to Solution, or sequence of Solution
        The keys label the curves; those of a sequence are labelled by their methods.
    ax : matplotlib.axes.Axes, optional
    rtol : float, optional
        The tolerance, drawn as a line.

    Raises
    ------
    NothingToDraw
        There is no solve, or none with a residual above 0.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> from ihvp import plot
    >>> A, v = ihvp.Dense(np.diag([1.0, 2.0, 4.0])), np.ones(3)
    >>> solves = {"CG": ihvp.solve(A, v), "MINRES": ihvp.solve(A, v, solver=ihvp.MINRES())}
    >>> ax = plot.convergence(solves, rtol=1e-5)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['CG', 'MINRES', 'tolerance 1e-05']
    """
    labelled = _labelled(solutions)
    histories = {label: _drawable(solution) for label, solution in labelled.items()}
    if not any(np.isfinite(history).any() for history in histories.values()):
        found = f"{len(labelled)} solve(s) without a finite residual above 0" if labelled else "no solve"
        raise NothingToDraw("convergence", found, "a Solution with steps")
    ax = axes(ax)
    ax.set_yscale("log")
    for (label, solution), (color, dashes, marker) in zip(labelled.items(), curves(), strict=False):
        history = histories[label]
        name = label if len(labelled) > 1 or isinstance(solutions, Mapping) else None
        lines = ax.plot(np.arange(len(history)), history, color=color, linestyle=dashes, linewidth=1.5)
        lines[0].set_label(name)
        residual = float(np.max(solution.residual))
        if np.isfinite(residual) and residual > 0:
            at_the_end = marker if solution.converged else "x"
            ax.plot(
                solution.iterations,
                residual,
                at_the_end,
                color=color,
                markersize=6,
                markeredgewidth=1.5,
                zorder=3,
            )
    if rtol is not None:
        ax.axhline(rtol, color=NEUTRAL, linewidth=1, linestyle=":", label=f"tolerance {rtol:g}")
    ax.set(xlabel="steps", ylabel="relative residual")
    if ax.get_legend_handles_labels()[1]:
        ax.legend(loc="best", frameon=False)
    return ax


def _labelled(solutions: Solution | Mapping[str, Solution] | Sequence[Solution]) -> dict[str, Solution]:
    if isinstance(solutions, Mapping):
        return dict(solutions)
    if isinstance(solutions, Solution):
        return {"": solutions}
    # After a colon stands why the method was taken.
    names = [solution.method.partition(":")[0] or "solve" for solution in solutions]
    return {
        name if names.count(name) == 1 else f"{name}, {number}": solution
        for number, (name, solution) in enumerate(zip(names, solutions, strict=True), 1)
    }


def _drawable(solution: Solution) -> np.ndarray:
    history = np.asarray(solution.history, dtype=np.float64)
    return np.where(np.isfinite(history) & (history > 0), history, np.nan)
