"""The record, and the optional capabilities that it declares."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from ihvp._problems import PROBLEMS, PredictingProblem, Problem
from ihvp.algebra import to_numpy
from ihvp.backend import CurvatureBackend, capabilities_of
from ihvp.data import Examples
from ihvp.errors import ParameterError
from ihvp.testing.case import LARGE, NETWORK, TOY, Case, Contract, each_dtype, each_problem

PREDICTING = tuple(problem for problem in PROBLEMS if isinstance(problem, PredictingProblem))


class CapabilityContract(Contract):
    """What is declared is there, and right."""

    def test_record_says_what_is_implemented(self) -> None:
        params = self.parameters(TOY.params, "float32")
        backend = self.plugin.factory(params)
        assert self.plugin.name == self.name
        assert isinstance(backend, CurvatureBackend)
        assert capabilities_of(backend) == self.plugin.capabilities

    def test_device_is_that_of_the_parameters(self) -> None:
        case = self.case(TOY, "float32")
        found, leaf = case.backend.device, case.params["w1"]
        place = str(getattr(leaf, "device", None) or case.space.device).lower()
        assert isinstance(found, str)
        assert re.fullmatch(r"cpu|[a-z]+:\d+", found), (
            f"device must be 'cpu', or kind and number as in 'cuda:0'; it is {found!r}"
        )
        assert (found == "cpu") == ("cpu" in place), (
            f"device must say where the parameters are, which is {place}; it is {found!r}"
        )

    @each_dtype
    @each_problem
    def test_linearize_is_hvp(self, problem: Problem, dtype: str) -> None:
        self.require("linearize")
        case = self.case(problem, dtype)
        matvec = case.optional.linearize(case.loss, case.params, case.batch)
        block = np.random.default_rng(16).standard_normal((problem.size, 3))
        for v in (block[:, 0], block):
            duty = "a linearised map must give what hvp gives"
            self.close(case, matvec(case.native(v)), problem.hessian() @ v, duty)

    def test_a_linearised_map_serves_many_products(self) -> None:
        self.require("linearize")
        case = self.case(NETWORK)
        matvec = case.optional.linearize(case.loss, case.params, case.batch)
        block = np.random.default_rng(23).standard_normal((NETWORK.size, 2))
        for count in range(1, 33):
            v = block if count % 3 == 0 else block[:, 0]
            duty = f"a linearised map must be right at every call; this is number {count}"
            self.close(case, matvec(case.native(v)), NETWORK.hessian() @ v, duty)

    def test_a_linearised_map_tells_what_it_keeps(self) -> None:
        self.require("linearize")
        case = self.case(LARGE)
        nbytes = getattr(case.optional.linearize(case.loss, case.params, case.batch), "nbytes", None)
        if nbytes is None:
            pytest.skip("its linearised map does not tell")
        # The least that the gradient of a network can be linearised with: one number of each example.
        least = LARGE.rows * np.dtype("float64").itemsize
        assert nbytes >= least, (
            f"nbytes must be the memory that the map keeps, here {least} at least; it is {nbytes}. Leave the "
            "attribute out where it is not known"
        )

    @each_dtype
    @each_problem
    def test_hvp_sum_is_the_sum_of_the_products_of_whole_pieces(self, problem: Problem, dtype: str) -> None:
        self.require("uniform_batches")
        case = self.case(problem, dtype)
        block = np.random.default_rng(19).standard_normal((problem.size, 3))
        # Each size and form of v is compiled anew where a framework compiles: all of them in one dtype.
        for size in {1, min(2, problem.rows), problem.rows} if dtype == "float64" else {min(2, problem.rows)}:
            pieces = (slice(i * size, (i + 1) * size) for i in range(problem.rows // size))
            total = np.sum([problem.hessian(rows) for rows in pieces], axis=0)
            for v in (block[:, 0], block):
                product = case.optional.hvp_sum(case.loss, case.params, case.batch, case.native(v), size)
                duty = "hvp_sum must be the sum over the whole pieces, and leave out what is beyond them"
                self.close(case, product, total @ v, duty)

    @each_dtype
    @each_problem
    def test_products_at_many_batches_are_those_at_each(self, problem: Problem, dtype: str) -> None:
        self.require("batch_products")
        case = self.case(problem, dtype)
        generator = np.random.default_rng(31)
        block = generator.standard_normal((problem.size, 4))
        products, before = case.optional.batch_products(case.loss, case.params), case.bits()
        for count in range(1, 25):
            v = block if count % 2 else block[:, 0]
            rows = generator.integers(0, problem.rows, problem.rows)
            duty = f"a product must be right for every batch; this is number {count}"
            product = products(Examples(case.batch, problem.rows).rows(rows), case.native(v))
            self.close(case, product, problem.hessian(rows) @ v, duty)
        assert case.bits() == before

    @each_problem
    def test_per_example_gradients_are_the_gradients_of_single_examples(self, problem: Problem) -> None:
        case = self.case(problem)
        expected = np.stack([problem.flat_gradient(rows=slice(i, i + 1)) for i in range(problem.rows)])
        duty = "row i must be the gradient of example i alone"
        self.close(case, self.objective(case).per_example_gradients(), expected, duty, product=False)
        if "per_example_grads" in self.plugin.capabilities:
            rows = case.optional.per_example_grads(case.loss, case.params, case.batch)
            self.close(case, rows, expected, duty, product=False)

    @each_dtype
    @each_problem
    def test_value_is_the_loss(self, problem: Problem, dtype: str) -> None:
        self.require("value")
        case = self.case(problem, dtype)
        before = case.bits()
        expected = np.asarray(problem.loss(np, problem.params, problem.batch))
        shifted = case.backend.unflatten(case.native(problem.flat(problem.params)), case.params)
        for params in (case.params, shifted):
            value = float(case.optional.value(case.functions.value, params, case.batch))
            self.close(case, np.asarray(value), expected, "value must be the loss", product=False)
        assert case.bits() == before

    @each_dtype
    @each_problem
    def test_example_products_are_those_of_the_gradients_of_single_examples(
        self, problem: Problem, dtype: str
    ) -> None:
        self.require("example_products")
        case = self.case(problem, dtype)
        gradients = np.stack([problem.flat_gradient(rows=slice(i, i + 1)) for i in range(problem.rows)])
        # More columns than a backend may take at once.
        block = np.random.default_rng(19).standard_normal((problem.size, 19))
        before = case.bits()
        for v in (block, block[:, :1], block[:, 0]):
            products = case.optional.example_products(case.loss, case.params, case.batch, case.native(v))
            duty = "example_products must be the products of v with the gradients of single examples"
            self.close(case, products, gradients @ v, duty, product=False)
        assert case.bits() == before

    @each_dtype
    @each_problem
    def test_input_derivatives_are_those_of_the_gradient(self, problem: Problem, dtype: str) -> None:
        self.require("input_derivatives")
        case = self.case(problem, dtype)
        block = np.random.default_rng(20).standard_normal((problem.size, 3))
        each = [problem.input_derivatives(column) for column in block.T]
        before = case.bits()
        found = self.input_derivatives(case, case.batch, block)
        duty = "input_derivatives must be the gradient's, with the columns of v along the first axis"
        for part, columns in zip(found, zip(*each, strict=True), strict=True):
            self.close(case, part, np.stack(columns), duty)
        single = self.input_derivatives(case, case.batch, block[:, 0])
        for part, expected in zip(single, each[0], strict=True):
            self.close(case, part, expected, duty)
        assert case.bits() == before

    def test_input_derivatives_have_the_structure_of_the_batch(self) -> None:
        self.require("input_derivatives")
        case = self.case(TOY)
        x, y = case.batch
        batch = {"x": [x, np.zeros(1, dtype=np.int64)], "scale": np.float64(1.0), "y": y}
        nested = functools.partial(_of_nested, case.loss)
        found = case.optional.input_derivatives(nested, case.params, batch, case.native(np.ones(2)))
        assert set(found) == {"x", "scale", "y"}
        assert found["x"][1] is None
        assert found["scale"] is None
        for part, expected in zip(
            (found["x"][0], found["y"]), TOY.input_derivatives(np.ones(2)), strict=True
        ):
            self.close(case, part, expected)

    def test_input_derivatives_of_whole_numbers_are_none(self) -> None:
        self.require("input_derivatives")
        case = self.case(TOY)
        batch = (np.zeros(1, dtype=np.int64),)
        loss = functools.partial(_of_parameters, self.dialect.xp)
        found = case.optional.input_derivatives(loss, case.params, batch, case.native(np.ones(2)))
        assert tuple(found) == (None,)

    @each_dtype
    @pytest.mark.parametrize("problem", PREDICTING, ids=lambda problem: problem.name)
    def test_gnvp_is_the_product_with_the_gauss_newton_matrix(
        self, problem: PredictingProblem, dtype: str
    ) -> None:
        self.require("gauss_newton")
        case = self.case(problem, dtype)
        block = np.random.default_rng(17).standard_normal((problem.size, 2))
        for v in (block, block[:, 0]):
            product = case.optional.gnvp(
                case.functions.predict, case.functions.output_loss, case.params, case.batch, case.native(v)
            )
            duty = "gnvp must be the product with the Gauss–Newton matrix"
            self.close(case, product, problem.gauss_newton() @ v, duty)

    @each_dtype
    @pytest.mark.parametrize("problem", PREDICTING, ids=lambda problem: problem.name)
    def test_push_forward_is_the_product_with_the_jacobian(
        self, problem: PredictingProblem, dtype: str
    ) -> None:
        self.require("push_forward")
        case = self.case(problem, dtype)
        block = np.random.default_rng(25).standard_normal((problem.size, 3))
        outputs, pushed = problem.predict(np, problem.params, problem.batch), problem.jacobian() @ block
        expected = pushed, 2 * np.sum(outputs[..., None] * pushed, axis=1)
        predict = functools.partial(_with_squares, self.dialect.xp, case.functions.predict)
        before = case.bits()
        duty = "push_forward must be the product with the Jacobian of each output, in their order"
        for v in (block, block[:, 0]):
            found = case.optional.push_forward(predict, case.params, case.batch, case.native(v))
            for part, columns in zip(found, expected, strict=True):
                self.close(case, part, columns if v.ndim == 2 else columns[..., 0], duty)
        assert case.bits() == before

    def test_the_gradient_of_the_curvature_is_that_of_its_products(self) -> None:
        self.require("implicit")
        case = self.case(NETWORK)
        x, y = np.random.default_rng(27).standard_normal((2, NETWORK.size))
        found = case.optional.curvature_gradient(
            case.loss, case.params, case.batch, case.native(x), case.native(y)
        )
        w = to_numpy(case.backend.flatten(case.params))
        near = [case.backend.unflatten(case.native(w + step * y), case.params) for step in (1e-5, -1e-5)]
        above, below = (
            to_numpy(case.backend.hvp(case.loss, params, case.batch, case.native(x))) for params in near
        )
        duty = "curvature_gradient must be ∇ (yᵀ ∇² loss x): the change of ∇² loss x along y"
        assert_allclose(to_numpy(found), (above - below) / 2e-5, rtol=1e-6, atol=1e-7, err_msg=duty)

    def test_parameters_and_other_arrays_are_joined(self) -> None:
        self.require("implicit")
        case = self.case(NETWORK)
        before, backend = case.bits(), case.optional
        both = backend.joint(case.params, {"weight": 0.5, "part": np.ones((2, 3))})
        w = to_numpy(backend.flatten(case.params))
        duty = "the vector of joint must have the entries of the parameters first"
        assert_array_equal(to_numpy(backend.flatten(both))[: len(w)], w, duty)
        assert sorted(to_numpy(backend.flatten(both[1]))) == [0.5] + [1.0] * 6, duty
        for leaf in (1, None, "1", np.ones(2, int)):
            with pytest.raises(ParameterError, match="hyperparameter"):
                backend.joint(case.params, {"weight": leaf})
        assert case.bits() == before

    def test_parameters_are_restored_from_names_and_arrays(self) -> None:
        self.require("checkpoints")
        case = self.case(NETWORK)
        before, backend = case.bits(), case.optional
        saved = {name: 2 * np.asarray(array) for name, array in NETWORK.params.items()}
        found = backend.restore(saved, case.params)
        duty = "restore must give each parameter the array of its name"
        assert_array_equal(to_numpy(backend.flatten(found)), 2 * to_numpy(backend.flatten(case.params)), duty)
        again = backend.restore(found, case.params)
        duty = "restore must take parameters in its own structure"
        assert_array_equal(to_numpy(backend.flatten(again)), to_numpy(backend.flatten(found)), duty)
        for other in ({**saved, "w2": saved["w2"][1:]}, {"w2": saved["w2"]}):
            with pytest.raises(ParameterError, match=r"w2|b1"):
                backend.restore(other, case.params)
        assert case.bits() == before

    def test_reduce_over_one_process_changes_nothing(self) -> None:
        self.require("reduce")
        case = self.case(TOY)
        v = np.array([1.0, 2.0])
        duty = "reduce must be the sum over all processes, of which there is one here"
        assert_array_equal(to_numpy(case.optional.reduce(case.native(v))), v, duty)

    def test_the_stated_error_of_a_product_is_of_the_size_of_the_true_one(self) -> None:
        self.require("product_error")
        case = self.case(NETWORK)
        ratios = []
        for v in np.random.default_rng(18).standard_normal((25, NETWORK.size)):
            stated = self.product_error(case, v)
            true = np.linalg.norm(case.hvp(v) - NETWORK.hessian() @ v)
            assert true / 10 <= stated <= 1e-6 * np.linalg.norm(v), (
                f"product_error must be of the size of ‖computed − exact‖ = {true:.2g}; it is {stated:.2g}"
            )
            ratios.append(stated / true)
        assert np.median(ratios) >= 1 / 3, (
            "product_error must be of the size of ‖computed − exact‖ or above; over 25 vectors its median is "
            f"{np.median(ratios):.2g} of that"
        )

    def test_the_stated_error_grows_with_the_product(self) -> None:
        self.require("product_error")
        case = self.case(NETWORK)
        larger = replace(case, functions=case.functions.each(_a_thousand_times))
        v = np.random.default_rng(18).standard_normal(NETWORK.size)
        stated = self.product_error(case, v)
        for of, error in (("v", self.product_error(case, 1024 * v)), ("loss", self.product_error(larger, v))):
            assert 1024 / 8 <= error / stated <= 1024 * 8, (
                f"product_error must be absolute: it grew {error / stated:.2g} times with 1024 times the {of}"
            )

    def product_error(self, case: Case, v: NDArray[Any]) -> float:
        """What the backend says of its product with ``v``."""
        return float(case.optional.product_error(case.loss, case.params, case.batch, case.native(v)))

    def input_derivatives(self, case: Case, batch: Any, v: NDArray[Any]) -> list[NDArray[Any]]:
        """What the backend says of a batch that is a tuple of floating arrays, as numpy."""
        found = case.optional.input_derivatives(case.loss, case.params, batch, case.native(v))
        assert isinstance(found, tuple)
        return [to_numpy(part) for part in found]


def _a_thousand_times(function: Callable[..., Any]) -> Callable[..., Any]:
    def times(params: Any, batch: Any) -> Any:
        result = function(params, batch)
        if isinstance(result, dict):
            return {key: 1024 * value for key, value in result.items()}
        return 1024 * result

    return times


def _with_squares(xp: Any, predict: Any, params: Any, batch: Any) -> Any:
    outputs = predict(params, batch)
    return [outputs, xp.sum(outputs**2, axis=1)]


def _of_nested(loss: Callable[..., Any], params: Any, batch: Any) -> Any:
    return loss(params, (batch["x"][0], batch["y"])) * batch["scale"]


def _of_parameters(xp: Any, params: Any, batch: Any) -> Any:
    return xp.sum(params["w1"] * params["w2"])
