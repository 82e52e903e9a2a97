"""The record, and the optional capabilities that it declares."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ihvp.algebra import to_numpy
from ihvp.backend import CurvatureBackend, capabilities_of
from ihvp.testing.case import NETWORK, TOY, Contract, each_dtype, each_problem
from ihvp.testing.problems import PROBLEMS, PredictingProblem, Problem

PREDICTING = tuple(problem for problem in PROBLEMS if isinstance(problem, PredictingProblem))


class CapabilityContract(Contract):
    """What is declared is there, and right."""

    def test_record_says_what_is_implemented(self) -> None:
        params = self.parameters(TOY.params, "float32")
        backend = self.plugin.factory(params)
        assert self.plugin.name == self.name
        assert isinstance(backend, CurvatureBackend)
        assert isinstance(backend.device, str)
        assert capabilities_of(backend) == self.plugin.capabilities

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

    @each_dtype
    @each_problem
    def test_hvp_sum_is_the_sum_of_the_products_of_whole_pieces(self, problem: Problem, dtype: str) -> None:
        self.require("uniform_batches")
        case = self.case(problem, dtype)
        block = np.random.default_rng(19).standard_normal((problem.size, 3))
        for size in {1, min(2, problem.rows), problem.rows}:
            pieces = (slice(i * size, (i + 1) * size) for i in range(problem.rows // size))
            total = np.sum([problem.hessian(rows) for rows in pieces], axis=0)
            for v in (block[:, 0], block):
                product = case.backend.hvp_sum(  # type: ignore[attr-defined]
                    case.loss, case.params, case.batch, case.native(v), size
                )
                self.close(case, product, total @ v)

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
