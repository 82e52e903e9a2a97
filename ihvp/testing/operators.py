"""The backend through the objective, the Hessian operator and a solve."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

import ihvp
from ihvp._problems import Problem
from ihvp.backend import SupportsProductError
from ihvp.errors import VectorError, WrongDtype, WrongShape
from ihvp.space import VectorSpace
from ihvp.testing.case import NETWORK, SOFTMAX, TOY, Contract, at, each_problem


class OperatorContract(Contract):
    """Weights of batches, forms of vectors, and answers."""

    @each_problem
    def test_the_hessian_operator_is_the_hessian(self, problem: Problem) -> None:
        case = self.case(problem)
        H = ihvp.Hessian(self.objective(case))
        assert H.shape == (problem.size, problem.size)
        self.close(case, H.to_dense(), problem.hessian())

    def test_the_hessian_operator_follows_parameters_that_change(self) -> None:
        case = self.case(NETWORK)
        H = ihvp.Hessian(self.objective(case))
        v = np.random.default_rng(24).standard_normal(NETWORK.size)
        self.close(case, H @ v, NETWORK.hessian() @ v)
        moved = at(NETWORK, {key: 1.25 * value for key, value in NETWORK.params.items()})
        self.change(case, moved.params)
        duty = "products must be those at the present parameters; the backend keeps something of earlier ones"
        self.close(case, H @ v, moved.hessian() @ v, duty)

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
        objective = self.objective(case, loss=summed, batch_size=4, reduction="sum")
        self.close(case, objective.gradient(), NETWORK.flat_gradient(), product=False)
        v = np.random.default_rng(13).standard_normal(NETWORK.size)
        self.close(case, ihvp.Hessian(objective) @ v, NETWORK.hessian() @ v)

    def test_a_batch_may_be_a_dict(self) -> None:
        case = self.case(SOFTMAX)

        def loss(xp: Any, params: Any, batch: Any) -> Any:
            return SOFTMAX.loss(xp, params, (batch["x"], batch["y"]))

        def gradient(params: Any, batch: Any) -> Any:
            return SOFTMAX.gradient(params, (batch["x"], batch["y"]))

        data = {"x": case.batch[0], "y": case.batch[1]}
        objective = self.objective(case, data, self.scalar(loss, gradient), batch_size=3)
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
        approximate = isinstance(case.backend, SupportsProductError)
        rtol, allowed = (1e-8, 1e-7) if approximate else (1e-12, 1e-10)
        H = ihvp.Hessian(self.objective(case))
        solution = ihvp.solve(H, np.ones(2), solver=ihvp.CG(rtol=rtol))
        assert solution.converged
        assert_allclose(H @ np.ones(2), [20 / 9, 28 / 3], rtol=0, atol=allowed)
        assert_allclose(solution.x, [5 / 4, -1 / 12], rtol=0, atol=allowed)

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
