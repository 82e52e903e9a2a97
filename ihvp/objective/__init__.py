"""The objective: a loss, its parameters and its data, as one function of the parameters."""

from __future__ import annotations

from ihvp.objective.objective import Objective
from ihvp.objective.weighted_mean import Term

__all__ = ["Objective", "Term"]
