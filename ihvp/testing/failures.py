"""What a backend must refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ihvp.errors import LossIndependentOfParameters, LossNotScalar, NonFinite
from ihvp.testing.case import SOFTMAX, Contract, raises


class FailureContract(Contract):
    """No loss that cannot be differentiated passes."""

    def test_a_loss_that_returns_nothing_is_refused(self) -> None:
        if self.plugin.differentiates == "gradient":
            pytest.skip("takes a gradient, which is no scalar")
        case = self.case(SOFTMAX)
        with raises(LossNotScalar, "grad must refuse a loss that returns None with LossNotScalar"):
            case.backend.grad(lambda params, batch: None, case.params, case.batch)

    def test_a_loss_that_is_nan_is_refused_with_its_batch(self) -> None:
        case = self.case(SOFTMAX)
        x, y = case.batch
        poisoned = x.copy()
        poisoned[0, 0] = np.nan
        objective = self.objective(case, [(x, y), (poisoned, y)])
        with pytest.raises(NonFinite) as caught:
            objective.gradient()
        assert caught.value.batch == 1

    def test_a_loss_that_ignores_the_parameters_is_refused(self) -> None:
        case = self.case(SOFTMAX)

        def loss(xp: Any, params: Any, batch: Any) -> Any:
            return xp.mean(batch[0] * batch[0])

        def gradient(params: Any, batch: Any) -> Any:
            return {key: np.zeros_like(value) for key, value in params.items()}

        objective = self.objective(case, loss=self.scalar(loss, gradient))
        with pytest.raises(LossIndependentOfParameters):
            objective.gradient()
