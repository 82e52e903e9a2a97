"""A loss of outputs, and the model that makes them, as one loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ihvp.backend import Batch, OutputLoss, Params, Predict


@dataclass(frozen=True)
class Composed:
    """``loss(predict(params, batch), batch)``; equal for equal parts, so compiled code is found again."""

    predict: Predict
    loss: OutputLoss

    def __call__(self, params: Params, batch: Batch) -> Any:
        return self.loss(self.predict(params, batch), batch)
