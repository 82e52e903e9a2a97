"""placeholder"""

from __future__ import annotations
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Comparison:
    outcome: Literal["passed", "wrong", "inconclusive"]
    error: float
    allowed: float
    why: str


def compare_with_gradients(backend: Any, loss: Any, params: Any, batch: Any, space: Any) -> Comparison:
    return Comparison("inconclusive", float("nan"), 0.01, "placeholder")
