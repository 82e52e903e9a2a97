"""Parameters as vectors, gradients, products with the Hessian, and losses that have none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ihvp._problems import Problem
from ihvp.algebra import to_numpy
from ihvp.errors import LossIndependentOfParameters, LossNotScalar, NonFinite, ParameterError
from ihvp.space import VectorSpace
from ihvp.testing.case import NETWORK, SOFTMAX, TOY, Contract, each_dtype, each_problem, raises


class DerivativeContract(Contract):
    """What flatten, unflatten, grad and hvp give."""

    @each_dtype
    def test_flatten_lists_the_parameters_row_by_row(self, dtype: str) -> None:
        case = self.case(NETWORK, dtype)
        flat = case.backend.flatten(case.params)
        assert flat.shape == (NETWORK.size,)
        expected = NETWORK.flat(NETWORK.params).astype(dtype)
        assert_array_equal(to_numpy(flat), expected, "flatten must list the arrays one by one, row by row")

    @each_dtype
    def test_unflatten_is_the_exact_inverse(self, dtype: str) -> None:
        case = self.case(NETWORK, dtype)
        vector = case.native(np.random.default_rng(3).standard_normal(NETWORK.size))
        structured = case.backend.unflatten(vector, case.params)
        duty = "unflatten must invert flatten bit for bit"
        assert_array_equal(to_numpy(case.backend.flatten(structured)), to_numpy(vector), duty)

    def test_what_unflatten_gives_serves_as_parameters(self) -> None:
        case = self.case(NETWORK)
        point = NETWORK.flat(NETWORK.params) + 0.1
        before = case.bits()
        self.close(
            case,
            case.grad(case.backend.unflatten(case.native(point), case.params)),
            NETWORK.flat_gradient(point),
            product=False,
        )
        assert case.bits() == before

    @pytest.mark.parametrize("dtype", ["int64", "bool", "complex64"])
    def test_parameters_that_are_no_real_floating_numbers_are_refused(self, dtype: str) -> None:
        params = self.dialect.parameters({"w": np.ones(3, dtype)})
        with raises(ParameterError, f"flatten must refuse parameters of dtype {dtype} with ParameterError"):
            self.plugin.factory().flatten(params)

    def test_parameters_of_two_dtypes_are_one_vector_of_the_wider(self) -> None:
        self.parameters(TOY.params, "float64")
        arrays = {"w1": np.ones(2, np.float32), "w2": np.full(3, 1 / 3)}
        params = self.dialect.parameters(arrays)
        backend = self.plugin.factory(params)
        flat = backend.flatten(params)
        assert "float64" in str(flat.dtype), f"flatten must promote to float64; it gave {flat.dtype}"
        assert_array_equal(to_numpy(flat), np.concatenate(list(arrays.values())))
        back = backend.unflatten(flat, params)
        for key, array in arrays.items():
            assert array.dtype.name in str(back[key].dtype), "unflatten must give every array its own dtype"
            assert tuple(back[key].shape) == array.shape

    def test_flatten_gives_a_copy(self) -> None:
        case = self.case(NETWORK)
        before, flat = case.bits(), case.backend.flatten(case.params)
        flat *= 0
        assert case.bits() == before, "flatten must not return the parameters' own memory"

    @each_dtype
    @each_problem
    def test_grad_is_the_gradient(self, problem: Problem, dtype: str) -> None:
        case = self.case(problem, dtype)
        duty = "grad must be the gradient of the loss"
        self.close(case, case.grad(), problem.flat_gradient(), duty, product=False)

    @each_dtype
    @each_problem
    def test_hvp_is_the_product_with_the_hessian(self, problem: Problem, dtype: str) -> None:
        case = self.case(problem, dtype)
        v = np.random.default_rng(4).standard_normal(problem.size)
        duty = "hvp must be the product of the loss's Hessian with v"
        self.close(case, case.hvp(v), problem.hessian() @ v, duty)

    @each_dtype
    @each_problem
    def test_hvp_of_a_block_is_the_block_of_hvps(self, problem: Problem, dtype: str) -> None:
        case = self.case(problem, dtype)
        block = np.random.default_rng(5).standard_normal((problem.size, 3))
        product = case.hvp(block)
        assert product.shape == block.shape
        self.close(case, product, problem.hessian() @ block)
        self.close(case, product, np.stack([case.hvp(column) for column in block.T], axis=1))

    def test_hvp_takes_a_block_of_one_column_and_of_more_than_p(self) -> None:
        case = self.case(TOY)
        for width in (1, 5):
            block = np.random.default_rng(6).standard_normal((TOY.size, width))
            product, duty = case.hvp(block), "hvp must take a block of any width and keep its shape"
            assert product.shape == block.shape, f"{duty}; {block.shape} became {product.shape}"
            self.close(case, product, TOY.hessian() @ block, duty)

    @each_problem
    def test_hvp_is_symmetric(self, problem: Problem) -> None:
        case = self.case(problem)
        u, v = np.random.default_rng(7).standard_normal((2, problem.size))
        self.close(case, np.asarray(u @ case.hvp(v)), np.asarray(v @ case.hvp(u)), "hvp must be symmetric")

    @each_problem
    def test_hvp_is_linear(self, problem: Problem) -> None:
        case = self.case(problem)
        u, v = np.random.default_rng(8).standard_normal((2, problem.size))
        self.close(
            case, case.hvp(2 * u - 3 * v), 2 * case.hvp(u) - 3 * case.hvp(v), "hvp must be linear in v"
        )

    def test_hvp_of_zero_is_zero(self) -> None:
        case = self.case(NETWORK)
        assert_array_equal(case.hvp(np.zeros(NETWORK.size)), np.zeros(NETWORK.size))

    @each_problem
    def test_two_calls_give_the_same_bits(self, problem: Problem) -> None:
        case = self.case(problem)
        v = np.ones(problem.size)
        duty = "two equal calls must give the same bits"
        assert_array_equal(case.grad(), case.grad(), duty)
        assert_array_equal(case.hvp(v), case.hvp(v), duty)

    @each_dtype
    def test_results_have_the_dtype_and_device_of_the_parameters(self, dtype: str) -> None:
        case = self.case(NETWORK, dtype)
        v = case.native(np.ones(NETWORK.size))
        for result in (
            case.backend.grad(case.loss, case.params, case.batch),
            case.backend.hvp(case.loss, case.params, case.batch, v),
        ):
            duty = "results must have the array type, dtype and device of the parameters' vector"
            assert VectorSpace.of(result).matches(case.space), duty

    def test_half_precision_runs_to_its_own_epsilon(self) -> None:
        case = self.case(SOFTMAX, "float16")
        self.close(case, case.grad(), SOFTMAX.flat_gradient(), product=False)
        v = np.random.default_rng(9).standard_normal(SOFTMAX.size)
        self.close(case, case.hvp(v), SOFTMAX.hessian() @ v)


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
