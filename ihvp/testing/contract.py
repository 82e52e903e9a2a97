"""BackendContract: the tests that every backend passes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

import ihvp
from ihvp._registry import usable_plugin
from ihvp.algebra import to_numpy
from ihvp.backend import (
    BackendPlugin,
    CurvatureBackend,
    GradientFunction,
    SupportsProductError,
    capabilities_of,
)
from ihvp.errors import (
    LossIndependentOfParameters,
    LossNotScalar,
    NonFinite,
    ParameterError,
    VectorError,
    WrongDtype,
    WrongShape,
)
from ihvp.space import VectorSpace
from ihvp.testing.problems import PROBLEMS, PredictingProblem, Problem, SeedToy, SoftmaxRegression, TanhMLP

PREDICTING = tuple(problem for problem in PROBLEMS if isinstance(problem, PredictingProblem))
TOY = next(problem for problem in PROBLEMS if isinstance(problem, SeedToy))
NETWORK = next(problem for problem in PROBLEMS if isinstance(problem, TanhMLP))
SOFTMAX = next(problem for problem in PROBLEMS if isinstance(problem, SoftmaxRegression))

each_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
each_dtype = pytest.mark.parametrize("dtype", ["float64", "float32"])


@dataclass(frozen=True)
class Case:
    """A problem in one framework and dtype: all that the protocol's methods take."""

    problem: Problem
    backend: CurvatureBackend
    loss: Any
    params: Any
    batch: Any
    space: VectorSpace

    def grad(self, params: Any = None) -> NDArray[Any]:
        """The gradient under test, as numpy."""
        point = self.params if params is None else params
        return to_numpy(self.backend.grad(self.loss, point, self.batch))

    def hvp(self, v: NDArray[Any]) -> NDArray[Any]:
        """The product under test, numpy in and out."""
        return to_numpy(self.backend.hvp(self.loss, self.params, self.batch, self.native(v)))

    def native(self, v: NDArray[Any]) -> Any:
        """``v`` in the backend's array type and the case's dtype."""
        return self.space.asarray(np.asarray(v))

    def bits(self) -> bytes:
        """The parameters, bit for bit."""
        return to_numpy(self.backend.flatten(self.params)).tobytes()


class BackendContract:
    """Inherit, set ``name``, and pytest runs the contract on that registered backend.

    Problems with known derivatives (:mod:`ihvp.testing.problems`) are the oracle; they bypass the backend.
    Tests of optional capabilities run where the plugin's record declares them, and one test compares what is
    declared with what is implemented, so that a skip hides nothing.

    Attributes
    ----------
    name : str
        The backend's registered name.
    """

    name: ClassVar[str]

    @property
    def plugin(self) -> BackendPlugin:
        """The record."""
        return usable_plugin(self.name)

    def case(self, problem: Problem, dtype: str = "float64") -> Case:
        """``problem`` in the backend's framework."""
        params = self.parameters(problem.params, dtype)
        backend = self.plugin.factory(params)
        flat = backend.flatten(params)
        batch = tuple(array.astype(dtype) for array in problem.batch)
        return Case(
            problem, backend, self.loss(problem), params, batch, VectorSpace.of(flat, backend, params)
        )

    def parameters(self, arrays: Mapping[str, NDArray[Any]], dtype: str) -> Any:
        """Trainable parameters of a dtype; skips a dtype that the framework does not keep."""
        assert self.plugin.dialect is not None, "the record's dialect is what this suite writes its losses in"
        cast = {key: value.astype(dtype) for key, value in arrays.items()}
        params = self.plugin.dialect().parameters(cast)
        kept = self.plugin.factory(params).flatten(params).dtype
        if dtype not in str(kept):
            pytest.skip(f"the framework turns {dtype} into {kept} here")
        return params

    def loss(self, problem: Problem) -> Any:
        """The problem's loss in the dialect, or its gradient for backends that differentiate gradients."""
        return _loss(self.name, problem)

    def scalar(self, function: Callable[..., Any], gradient: Callable[..., Any]) -> Any:
        """An ad-hoc loss ``function(xp, params, batch)``, or its gradient where that is what counts."""
        if self.plugin.differentiates == "gradient":
            return GradientFunction(gradient)
        assert self.plugin.dialect is not None
        return functools.partial(function, self.plugin.dialect().xp)

    def objective(self, case: Case, data: Any = None, **options: Any) -> ihvp.Objective:
        """An objective of the case, on other data if given."""
        source = {"grad": case.loss.grad} if isinstance(case.loss, GradientFunction) else {"loss": case.loss}
        return ihvp.Objective(
            **source,
            params=case.params,
            data=case.batch if data is None else data,
            backend=self.name,
            **options,
        )

    def require(self, capability: str) -> None:
        """Skip unless the record declares ``capability``."""
        if capability not in self.plugin.capabilities:
            pytest.skip(f"{self.name} does not declare {capability}")

    def close(self, case: Case, found: Any, expected: NDArray[np.float64], *, product: bool = True) -> None:
        """Assert equality to what the dtype allows, relative to the size of ``expected``."""
        eps = case.space.eps
        approximate = product and isinstance(case.backend, SupportsProductError)
        # Central differences lose a third of the digits; exact derivatives some last bits of a sum.
        tolerance = 20 * eps ** (2 / 3) if approximate else 50 * eps
        scale = max(float(np.max(np.abs(expected))), 1e-30)
        assert_allclose(to_numpy(found) / scale, expected / scale, rtol=0, atol=tolerance)

    # The record

    def test_record_says_what_is_implemented(self) -> None:
        params = self.parameters(TOY.params, "float32")
        backend = self.plugin.factory(params)
        assert self.plugin.name == self.name
        assert isinstance(backend, CurvatureBackend)
        assert isinstance(backend.device, str)
        assert capabilities_of(backend) == self.plugin.capabilities

    # Parameters and vectors

    @each_dtype
    def test_flatten_lists_the_parameters_row_by_row(self, dtype: str) -> None:
        case = self.case(NETWORK, dtype)
        flat = case.backend.flatten(case.params)
        assert flat.shape == (NETWORK.size,)
        assert_array_equal(to_numpy(flat), NETWORK.flat(NETWORK.params).astype(dtype))

    @each_dtype
    def test_unflatten_is_the_exact_inverse(self, dtype: str) -> None:
        case = self.case(NETWORK, dtype)
        vector = case.native(np.random.default_rng(3).standard_normal(NETWORK.size))
        structured = case.backend.unflatten(vector, case.params)
        assert_array_equal(to_numpy(case.backend.flatten(structured)), to_numpy(vector))

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

    def test_integer_parameters_are_refused(self) -> None:
        assert self.plugin.dialect is not None
        params = self.plugin.dialect().parameters({"w": np.arange(3)})
        backend = self.plugin.factory()
        with pytest.raises(ParameterError):
            backend.flatten(params)

    # Derivatives

    @each_dtype
    @each_problem
    def test_grad_is_the_gradient(self, problem: Problem, dtype: str) -> None:
        case = self.case(problem, dtype)
        self.close(case, case.grad(), problem.flat_gradient(), product=False)

    @each_dtype
    @each_problem
    def test_hvp_is_the_product_with_the_hessian(self, problem: Problem, dtype: str) -> None:
        case = self.case(problem, dtype)
        v = np.random.default_rng(4).standard_normal(problem.size)
        self.close(case, case.hvp(v), problem.hessian() @ v)

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
            self.close(case, case.hvp(block), TOY.hessian() @ block)

    @each_problem
    def test_hvp_is_symmetric(self, problem: Problem) -> None:
        case = self.case(problem)
        u, v = np.random.default_rng(7).standard_normal((2, problem.size))
        self.close(case, np.asarray(u @ case.hvp(v)), np.asarray(v @ case.hvp(u)))

    @each_problem
    def test_hvp_is_linear(self, problem: Problem) -> None:
        case = self.case(problem)
        u, v = np.random.default_rng(8).standard_normal((2, problem.size))
        self.close(case, case.hvp(2 * u - 3 * v), 2 * case.hvp(u) - 3 * case.hvp(v))

    def test_hvp_of_zero_is_zero(self) -> None:
        case = self.case(NETWORK)
        assert_array_equal(case.hvp(np.zeros(NETWORK.size)), np.zeros(NETWORK.size))

    @each_problem
    def test_two_calls_give_the_same_bits(self, problem: Problem) -> None:
        case = self.case(problem)
        v = np.ones(problem.size)
        assert_array_equal(case.grad(), case.grad())
        assert_array_equal(case.hvp(v), case.hvp(v))

    @each_dtype
    def test_results_have_the_dtype_and_device_of_the_parameters(self, dtype: str) -> None:
        case = self.case(NETWORK, dtype)
        v = case.native(np.ones(NETWORK.size))
        for result in (
            case.backend.grad(case.loss, case.params, case.batch),
            case.backend.hvp(case.loss, case.params, case.batch, v),
        ):
            assert VectorSpace.of(result).matches(case.space)

    def test_half_precision_runs_to_its_own_epsilon(self) -> None:
        case = self.case(SOFTMAX, "float16")
        self.close(case, case.grad(), SOFTMAX.flat_gradient(), product=False)
        v = np.random.default_rng(9).standard_normal(SOFTMAX.size)
        self.close(case, case.hvp(v), SOFTMAX.hessian() @ v)

    # What must not happen

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

    # Through the objective and the operator

    @each_problem
    def test_the_hessian_operator_is_the_hessian(self, problem: Problem) -> None:
        case = self.case(problem)
        H = ihvp.Hessian(self.objective(case))
        assert H.shape == (problem.size, problem.size)
        self.close(case, H.to_dense(), problem.hessian())

    def test_batches_are_weighted_by_their_examples(self) -> None:
        case = self.case(NETWORK)
        cuts = (slice(0, 4), slice(4, 5), slice(5, 9))
        pieces = [tuple(array[rows] for array in case.batch) for rows in cuts]
        objective = self.objective(case, pieces)
        v = np.random.default_rng(11).standard_normal(NETWORK.size)
        self.close(case, objective.gradient(), NETWORK.flat_gradient(), product=False)
        self.close(case, ihvp.Hessian(objective) @ v, NETWORK.hessian() @ v)
        assert objective.num_examples == 9

    def test_batch_size_changes_nothing_but_the_memory(self) -> None:
        case = self.case(NETWORK)
        v = np.random.default_rng(12).standard_normal(NETWORK.size)
        self.close(case, ihvp.Hessian(self.objective(case, batch_size=2)) @ v, NETWORK.hessian() @ v)

    def test_a_summed_loss_gives_the_same_objective(self) -> None:
        case = self.case(NETWORK)

        def loss(xp: Any, params: Any, batch: Any) -> Any:
            return NETWORK.loss(xp, params, batch) * batch[0].shape[0]

        def gradient(params: Any, batch: Any) -> Any:
            return {key: value * len(batch[0]) for key, value in NETWORK.gradient(params, batch).items()}

        summed = self.scalar(loss, gradient)
        source = {"grad": gradient} if isinstance(summed, GradientFunction) else {"loss": summed}
        objective = ihvp.Objective(
            **source, params=case.params, data=case.batch, batch_size=4, reduction="sum", backend=self.name
        )
        self.close(case, objective.gradient(), NETWORK.flat_gradient(), product=False)
        v = np.random.default_rng(13).standard_normal(NETWORK.size)
        self.close(case, ihvp.Hessian(objective) @ v, NETWORK.hessian() @ v)

    def test_a_batch_may_be_a_dict(self) -> None:
        case = self.case(SOFTMAX)

        def loss(xp: Any, params: Any, batch: Any) -> Any:
            return SOFTMAX.loss(xp, params, (batch["x"], batch["y"]))

        def gradient(params: Any, batch: Any) -> Any:
            return SOFTMAX.gradient(params, (batch["x"], batch["y"]))

        split = self.scalar(loss, gradient)
        source = {"grad": gradient} if isinstance(split, GradientFunction) else {"loss": split}
        data = {"x": case.batch[0], "y": case.batch[1]}
        objective = ihvp.Objective(**source, params=case.params, data=data, batch_size=3, backend=self.name)
        self.close(case, objective.gradient(), SOFTMAX.flat_gradient(), product=False)

    def test_an_answer_has_the_form_of_the_vector(self) -> None:
        case = self.case(NETWORK)
        H = ihvp.Hessian(self.objective(case))
        v = np.random.default_rng(14).standard_normal(NETWORK.size)
        expected = NETWORK.hessian() @ v
        from_numpy = H @ v
        assert isinstance(from_numpy, np.ndarray)
        self.close(case, from_numpy, expected)
        native = H @ case.native(v)
        assert VectorSpace.of(native).matches(case.space)
        self.close(case, native, expected)
        structure = case.backend.unflatten(case.native(v), case.params)
        answer = H @ structure
        assert set(answer) == set(structure)
        self.close(case, case.backend.flatten(answer), expected)

    def test_a_structure_in_another_order_is_aligned(self) -> None:
        case = self.case(NETWORK)
        H = ihvp.Hessian(self.objective(case))
        v = np.random.default_rng(15).standard_normal(NETWORK.size)
        structure = case.backend.unflatten(case.native(v), case.params)
        turned = {key: structure[key] for key in reversed(list(structure))}
        answer = H @ turned
        ordered = {key: answer[key] for key in structure}
        self.close(case, case.backend.flatten(ordered), NETWORK.hessian() @ v)

    def test_cg_solves_the_toy_problem(self) -> None:
        case = self.case(TOY)
        tolerance = 1e-7 if isinstance(case.backend, SupportsProductError) else 1e-12
        H = ihvp.Hessian(self.objective(case))
        solution = ihvp.solve(H, np.ones(2), solver=ihvp.CG(rtol=tolerance))
        assert solution.converged
        assert_allclose(H @ np.ones(2), [20 / 9, 28 / 3], rtol=tolerance * 100)
        assert_allclose(solution.x, [5 / 4, -1 / 12], rtol=tolerance * 100)

    def test_vectors_of_another_space_are_refused(self) -> None:
        case = self.case(SOFTMAX, "float32")
        H = ihvp.Hessian(self.objective(case))
        with pytest.raises(WrongShape):
            _ = H @ np.ones(SOFTMAX.size + 1, dtype=np.float32)
        with pytest.raises(WrongDtype):
            _ = H @ np.ones(SOFTMAX.size, dtype=np.int64)
        with pytest.raises(WrongDtype):
            _ = H @ np.ones(SOFTMAX.size)
        with pytest.raises(VectorError, match="NaN"):
            _ = H @ np.full(SOFTMAX.size, np.nan, dtype=np.float32)

    # Capabilities

    @each_dtype
    @each_problem
    def test_linearize_is_hvp(self, problem: Problem, dtype: str) -> None:
        self.require("linearize")
        case = self.case(problem, dtype)
        matvec = case.backend.linearize(case.loss, case.params, case.batch)  # type: ignore[attr-defined]
        block = np.random.default_rng(16).standard_normal((problem.size, 3))
        for _ in range(2):
            self.close(case, matvec(case.native(block[:, 0])), problem.hessian() @ block[:, 0])
            self.close(case, matvec(case.native(block)), problem.hessian() @ block)

    @each_problem
    def test_per_example_gradients_are_the_gradients_of_single_examples(self, problem: Problem) -> None:
        case = self.case(problem)
        expected = np.stack([problem.flat_gradient(rows=slice(i, i + 1)) for i in range(problem.rows)])
        self.close(case, self.objective(case).per_example_gradients(), expected, product=False)
        if "per_example_grads" in self.plugin.capabilities:
            rows = case.backend.per_example_grads(case.loss, case.params, case.batch)  # type: ignore[attr-defined]
            self.close(case, rows, expected, product=False)

    @each_dtype
    @pytest.mark.parametrize("problem", PREDICTING, ids=lambda problem: problem.name)
    def test_gnvp_is_the_product_with_the_gauss_newton_matrix(
        self, problem: PredictingProblem, dtype: str
    ) -> None:
        self.require("gauss_newton")
        case = self.case(problem, dtype)
        assert self.plugin.dialect is not None
        xp = self.plugin.dialect().xp
        predict = functools.partial(problem.predict, xp)
        output_loss = functools.partial(problem.output_loss, xp)
        block = np.random.default_rng(17).standard_normal((problem.size, 2))
        for v in (block, block[:, 0]):
            product = case.backend.gnvp(  # type: ignore[attr-defined]
                predict, output_loss, case.params, case.batch, case.native(v)
            )
            self.close(case, product, problem.gauss_newton() @ v)

    def test_reduce_over_one_process_changes_nothing(self) -> None:
        self.require("reduce")
        case = self.case(TOY)
        v = np.array([1.0, 2.0])
        assert_array_equal(to_numpy(case.backend.reduce(case.native(v))), v)  # type: ignore[attr-defined]

    def test_the_stated_error_of_a_product_bounds_the_true_one(self) -> None:
        self.require("product_error")
        case = self.case(NETWORK)
        v = np.random.default_rng(18).standard_normal(NETWORK.size)
        stated = case.backend.product_error(case.loss, case.params, case.batch, case.native(v))  # type: ignore[attr-defined]
        true = np.linalg.norm(case.hvp(v) - NETWORK.hessian() @ v)
        assert true / 10 <= stated <= 1e-6 * np.linalg.norm(v)


@functools.cache
def _loss(name: str, problem: Problem) -> Any:
    # Cached so that frameworks that compile a loss find it again in the next test.
    plugin = usable_plugin(name)
    if plugin.differentiates == "gradient":
        return GradientFunction(problem.gradient)
    assert plugin.dialect is not None
    return functools.partial(problem.loss, plugin.dialect().xp)
