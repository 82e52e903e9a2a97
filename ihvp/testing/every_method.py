"""What holds for each method of the protocol alike: what it sees, what it leaves alone, what it raises."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import array_api_compat
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from ihvp import algebra
from ihvp._problems import TanhMLP
from ihvp.algebra import to_numpy
from ihvp.errors import LossNotScalar, NonFinite
from ihvp.testing.case import LARGE, NETWORK, Case, Contract, at, raises
from ihvp.testing.methods import Method, each_method, each_method_that

# More columns than a backend is likely to take at once.
WIDTH = 130


class MethodContract(Contract):
    """One table of methods (:data:`ihvp.testing.methods.METHODS`), one duty a test."""

    @each_method
    def test_all_rows_of_a_batch_count(self, method: Method) -> None:
        case = self.case_for(method, LARGE)
        self.check(case, method, method.of(case), LARGE, f"{method.name} must use every row of the batch")

    @each_method_that(lambda method: method.of_vectors)
    def test_blocks_of_any_width_and_layout_are_multiplied_column_by_column(self, method: Method) -> None:
        case = self.case_for(method)
        block = np.random.default_rng(21).standard_normal((NETWORK.size, WIDTH))
        expected = method.expected(NETWORK, block)
        call, duty = method.of(case), f"{method.name} must give {WIDTH} columns what it gives each alone"
        self.close(case, method.numbers(call(case.native(block))), expected, duty)
        transposed = case.native(np.ascontiguousarray(block.T)).T
        self.close(case, method.numbers(call(transposed)), expected, f"{duty}, in any order in memory")
        column = case.native(block)[:, 7]
        self.close(case, method.numbers(call(column)), expected[:, 7], f"{method.name} must take a strided v")

    @each_method
    def test_the_present_parameters_count(self, method: Method) -> None:
        case = self.case_for(method)
        call = method.of(case)
        self.check(case, method, call, NETWORK, f"{method.name} must be right at the first call")
        for factor, change, what in (
            (1.25, self.change, "changed in place"),
            (0.75, _replace_each, "replaced in their container"),
        ):
            moved = at(NETWORK, {key: factor * value for key, value in NETWORK.params.items()})
            change(
                case, self.parameters(moved.params, "float64") if change is _replace_each else moved.params
            )
            duty = f"{method.name} must use the parameters' values at the time of the call; they were {what}"
            if method.name == "linearize":
                self.check(case, method, call, moved, f"{duty} after the map was made: linearise again")
            self.check(case, method, method.of(case), moved, duty)
        point = NETWORK.flat(NETWORK.params)
        shifted = replace(case, params=case.backend.unflatten(case.native(point), case.params))
        duty = f"{method.name} must take what unflatten returned as parameters"
        self.check(shifted, method, method.of(shifted), NETWORK, duty)
        self.check(case, method, method.of(case), moved, f"{duty}, and leave the caller's own")

    @each_method
    def test_the_present_batch_counts(self, method: Method) -> None:
        case = self.case_for(method)
        self.check(case, method, method.of(case), NETWORK, f"{method.name} must be right at the first call")
        case.batch[0][...] *= 1.5
        duty = f"{method.name} must use the batch's values at the time of the call; its array was written to"
        self.check(case, method, method.of(case), at(NETWORK, batch=case.batch), duty)

    @each_method
    def test_a_dict_is_a_batch(self, method: Method) -> None:
        case = self.case_for(method)
        batch = {"x": case.batch[0], "y": case.batch[1]}
        named = replace(case, batch=batch, functions=case.functions.each(_taking_a_dict))
        self.check(
            named, method, method.of(named), NETWORK, f"{method.name} must take a batch that is a dict"
        )

    @each_method
    def test_nothing_is_left_behind(self, method: Method) -> None:
        case = self.case_for(method)
        numbers = np.ones(NETWORK.size)
        v, before, batch = case.native(numbers.copy()), case.state(), copy.deepcopy(case.batch)
        method.of(case)(v)
        assert case.state() == before, (
            f"{method.name} must leave the parameters as they were: the same objects and bits, with the same "
            "gradients and marks beside them"
        )
        assert_array_equal(to_numpy(v), numbers, f"{method.name} must not write to v")
        for array, expected in zip(case.batch, batch, strict=True):
            assert_array_equal(array, expected, f"{method.name} must not write to the batch")
        failing = replace(case, functions=case.functions.each(_failing))
        with raises(KeyError, f"{method.name} must pass on the loss's own error"):
            method.of(failing)(v)
        assert case.state() == before, f"{method.name} must put the parameters back when the loss raises"

    @each_method_that(lambda method: method.like_vectors)
    def test_a_result_is_the_callers_own(self, method: Method) -> None:
        case = self.case_for(method)
        before, call = case.bits(), method.of(case)
        result = call(case.native(_vector(NETWORK)))
        result *= 0
        assert case.bits() == before, f"{method.name} must not return the parameters' own memory"
        self.check(case, method, call, NETWORK, f"{method.name} must not return what it keeps")

    @each_method
    def test_half_precision_has_vectors_in_single_precision(self, method: Method) -> None:
        case = self.case_for(method, dtype="float16")
        duty = f"{method.name} must compute to the precision of the parameters"
        self.check(case, method, method.of(case), NETWORK, duty)

    @each_method
    def test_nan_is_passed_on(self, method: Method) -> None:
        case = self.case_for(method)
        case.batch[0][0, 0] = np.nan
        try:
            result = method.of(case)(case.native(np.ones(NETWORK.size)))
        except NonFinite:
            return
        assert not np.isfinite(method.numbers(result)).all(), f"{method.name} must not hide NaN of the loss"

    @each_method_that(lambda method: method.name not in ("value", "push_forward"))
    def test_a_loss_with_axes_is_refused(self, method: Method) -> None:
        case = self.case_for(method)
        if self.plugin.differentiates == "gradient":
            pytest.skip("takes a gradient, which is no scalar")
        assert case.functions.predict is not None
        xp = self.dialect.xp
        by_class = replace(
            case.functions,
            loss=functools.partial(_loss_by_class, case.functions.predict, xp),
            output_loss=functools.partial(_outputs_by_class, xp),
        )
        with raises(LossNotScalar, f"{method.name} must refuse a loss that is a vector with LossNotScalar"):
            method.of(replace(case, functions=by_class))(case.native(np.ones(NETWORK.size)))

    def case_for(self, method: Method, problem: TanhMLP = NETWORK, dtype: str = "float64") -> Case:
        """``problem``, for a backend that has the method."""
        if method.capability is not None:
            self.require(method.capability)
        return self.case(problem, dtype)

    def check(
        self, case: Case, method: Method, call: Callable[[Any], Any], problem: TanhMLP, duty: str
    ) -> None:
        """Compare a call with what it should give for ``problem``, and its form with the vectors'."""
        v = _vector(problem)
        try:
            result = call(case.native(v))
        except Exception as error:
            raise AssertionError(f"{duty}; it raised {type(error).__name__}: {error}") from error
        if method.like_vectors:
            assert (result.dtype, algebra.device(result), array_api_compat.array_namespace(result)) == (
                case.space.dtype,
                case.space.device,
                case.space.xp,
            ), f"{method.name} must return the array type, dtype and device of the parameters' vector"
        expected = method.expected(problem, v)
        self.close(case, method.numbers(result), expected, duty, product=method.product, rows=problem.rows)


def _vector(problem: TanhMLP) -> NDArray[Any]:
    return np.random.default_rng(22).standard_normal(problem.size)


def _replace_each(case: Case, values: Any) -> None:
    for key in case.problem.params:
        case.params[key] = values[key]


def _taking_a_dict(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda first, batch: function(first, (batch["x"], batch["y"]))


def _failing(function: Callable[..., Any]) -> Callable[..., Any]:
    def fail(*arguments: Any) -> Any:
        function(*arguments)
        raise KeyError("from the loss")

    return fail


def _loss_by_class(predict: Callable[..., Any], xp: Any, params: Any, batch: Any) -> Any:
    return xp.sum(predict(params, batch), axis=0)


def _outputs_by_class(xp: Any, outputs: Any, batch: Any) -> Any:
    return xp.sum(outputs, axis=0)
