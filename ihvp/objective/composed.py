"""A loss of outputs, and the model that makes them, as one loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ihvp.backend import Batch, Loss, Params


class Composed:
    """``loss(predict(params, batch), batch)``; equal for equal parts, so compiled code is found again."""

    def __init__(self, predict: Callable[[Params, Batch], Any], loss: Loss) -> None:
        self.parts = (predict, loss)

    def __call__(self, params: Params, batch: Batch) -> Any:
        predict, loss = self.parts
        return loss(predict(params, batch), batch)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Composed) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)
