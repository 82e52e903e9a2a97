"""What was checked of an objective's premises, and what came out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["passed", "inconclusive", "not needed", "not checked yet", "switched off"]


@dataclass(frozen=True)
class Check:
    """One premise.

    Attributes
    ----------
    premise : str
        What results rest on.
    outcome : str
        "passed", "inconclusive" (no statement is possible), "not needed", "not checked yet" (nothing has
        rested on it so far) or "switched off". A check that fails raises its error instead.
    why : str
        What was found, in a sentence.
    """

    premise: str
    outcome: Outcome
    why: str = ""

    def __str__(self) -> str:
        return f"{self.premise}: {self.outcome}" + (f" ({self.why})" if self.why else "")


@dataclass(frozen=True)
class Report:
    """The premises of an objective, by name; made by :meth:`ihvp.Objective.report`.

    Attributes
    ----------
    gradient : Check
        The loss is one finite scalar that depends on the parameters, with the same gradient twice.
    additive : Check
        A batch's gradient is the weighted mean, or the declared sum, of the gradients of its parts.
    second_derivative : Check
        The framework's second derivative is that of its first.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> objective = ihvp.Objective(params=np.ones(2), grad=lambda w, batch: 2 * w)
    >>> gradient = objective.gradient()
    >>> objective.report().gradient.outcome
    'passed'
    """

    gradient: Check
    additive: Check
    second_derivative: Check

    def __str__(self) -> str:
        return "\n".join(str(check) for check in (self.gradient, self.additive, self.second_derivative))
