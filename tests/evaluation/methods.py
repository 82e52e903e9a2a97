"""A method: from a trained network to scores, at one damping or at several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.evaluation.tasks import Trained

Fitted = Callable[[float, Any, Any], Any]
"""``fitted(damping, inputs, labels)``: scores ``(n_test, n_train)``, positive where an example helps."""

DAMPINGS: tuple[float, ...] = tuple(float(damping) for damping in 10.0 ** np.arange(-4, 0.75, 0.5))
"""What every method that has a damping may choose from."""


class NotHere(Exception):
    """A method does not do a task; the text says why in a few words."""


@dataclass(frozen=True)
class Method:
    """One row of the tables."""

    name: str
    library: str
    fit: Callable[[Trained, Path], Fitted]  # what can be prepared for all dampings; files go to the folder
    tuned: bool = False  # the damping is chosen, on outcomes that judge nothing
    damping: float = 0.0  # what it has otherwise
    curvature: Callable[[Any], Any] | None = None  # where ihvp.evaluate.dampings knows the path
    modules: Sequence[str] = ()  # what is imported before the clock starts
    on_itself: bool = True  # whether its scores of an example on itself tell outliers

    @property
    def slug(self) -> str:
        """Its name in files."""
        return "".join(c if c.isalnum() else "-" for c in f"{self.library} {self.name}".lower())
