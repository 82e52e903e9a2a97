"""What a backend must not do, and what it must refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import ihvp
from ihvp.algebra import to_numpy
from ihvp.backend import GradientFunction
from ihvp.errors import (
    LossIndependentOfParameters,
    LossNotScalar,
    NonFinite,
)
from ihvp.testing.case import NETWORK, SOFTMAX, Contract


class FailureContract(Contract):
    """Nothing is changed, and no loss that cannot be differentiated passes."""

    def test_nothing_is_changed_by_a_call(self) -> None:
        case = self.case(NETWORK)
        v = np.random.default_rng(10).standard_normal((NETWORK.size, 2))
        native, batch_before, before = case.native(v), [array.copy() for array in case.batch], case.bits()
        case.backend.grad(case.loss, case.params, case.batch)
        case.backend.hvp(case.loss, case.params, case.batch, native)
        assert case.bits() == before
        assert_array_equal(to_numpy(native), v)
        for array, copy in zip(case.batch, batch_before, strict=True):
            assert_array_equal(array, copy)

    def test_the_losss_own_error_comes_through_and_nothing_is_changed(self) -> None:
        case = self.case(NETWORK)
        before = case.bits()

        def fail(*_: Any) -> Any:
            raise KeyError("from the loss")

        v = case.native(np.ones(NETWORK.size))
        with pytest.raises(KeyError, match="from the loss"):
            case.backend.hvp(self.scalar(fail, fail), case.params, case.batch, v)
        assert case.bits() == before

    @pytest.mark.parametrize("result", ["vector", "None"])
    def test_a_loss_that_is_no_scalar_is_refused(self, result: str) -> None:
        if self.plugin.differentiates == "gradient":
            pytest.skip("takes a gradient, which is no scalar")
        case = self.case(SOFTMAX)

        def loss(xp: Any, params: Any, batch: Any) -> Any:
            return xp.sum(batch[0] @ params["weight"], axis=1) if result == "vector" else None

        with pytest.raises(LossNotScalar):
            case.backend.grad(self.scalar(loss, loss), case.params, case.batch)

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

        constant = self.scalar(loss, gradient)
        source = {"grad": gradient} if isinstance(constant, GradientFunction) else {"loss": constant}
        objective = ihvp.Objective(**source, params=case.params, data=case.batch, backend=self.name)
        with pytest.raises(LossIndependentOfParameters):
            objective.gradient()
