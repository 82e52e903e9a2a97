"""A trained model: what every question about the influence of its training data has in common."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from ihvp import fingerprint
from ihvp.contents import Contents
from ihvp.data import Batches
from ihvp.errors import InvalidOption
from ihvp.influence.blocks import rows_at_once
from ihvp.influence.checks import check_model, check_order, check_values, question_of
from ihvp.influence.curvature import definite_inverse
from ihvp.influence.optimum import warn_unless_optimal
from ihvp.influence.points import Points, Solved, Unsolved
from ihvp.influence.products import InverseProducts
from ihvp.objective import Objective
from ihvp.operators import ScalarMatrix
from ihvp.solvers import ClosedForm, inverse
from ihvp.solvers.solve import Inverse


class TrainedModel:
    """A loss at its optimum, with the inverse of its curvature.

    ``chosen`` says whether the caller chose the curvature or the solver, and ``anywhere`` that a method is of
    use away from an optimum, too.
    """

    def __init__(
        self,
        objective: Objective,
        inverse: Inverse,
        train_loss: Callable[..., Any] | None,
        version: str | None = None,
        *,
        chosen: bool = True,
        anywhere: bool = False,
    ) -> None:
        self.objective = objective
        self._inverse, self._chosen = inverse, chosen
        self._train_loss, self._version = train_loss, version
        self._removable: Objective | None = None
        self._data_checked, self._optimum_checked = False, anywhere

    @cached_property
    def inverse(self) -> Inverse:
        """``(H + λI)⁻¹``, of a matrix that serves where the caller chose none."""
        return self._inverse if self._chosen else definite_inverse(self.objective, self._inverse)

    @property
    def total(self) -> int:
        """N, over all processes."""
        return self.objective.total_examples

    @property
    def rows(self) -> int:
        """How many examples make a block."""
        return rows_at_once(self.objective.num_params)

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of scores, as numpy has it."""
        return np.dtype(np.float64 if self.objective.space.eps < 1e-10 else np.float32)

    def training(self, data: Any = None) -> Objective:
        """What goes away with an example, over the examples to score: by default those trained on."""
        objective, known = self.objective, self._removable
        objective.agree()
        # What is found out about a loss stays known as long as the objective is the same.
        if (
            known is None
            or known.params is not objective.params
            or known.batches.data is not objective.batches.data
        ):
            self._removable = known = objective.on(objective.batches.data, self._train_loss)
            known.agree()
        # Examples that are not in the training data enter it with their weight beside those that are.
        training = known.on(
            objective.batches.data if data is None else data,
            mean_weight=objective.mean_weight,
            alone=data is not None,
        )
        check_order(training.batches, "training")
        if data is not None:
            self._require_same("the training examples to score", training.batches)
            check_values(training, "training")
        return training

    def question(self, test_data: Any, test_loss: Callable[..., Any] | None) -> Objective:
        """The test loss over the test data; weights belong to the objective's own loss."""
        question = question_of(self.objective, test_data, test_loss)
        self.check()
        self._require_same("the test data", question.batches)
        check_values(question, "test")
        return question

    def points(self, test_data: Any, test_loss: Callable[..., Any] | None, progress: bool | None) -> Points:
        """The inverse products of test points: to be solved for, or those that were passed."""
        if not isinstance(test_data, InverseProducts):
            return Unsolved(self.question(test_data, test_loss), self.inverse, progress)
        if test_loss is not None:
            raise InvalidOption(
                "test_loss", test_loss, "None with InverseProducts, which have their loss in them"
            )
        found, expected = test_data.model, self.fingerprints()
        differing = [name for name in expected if found.get(name) != expected[name]]
        if differing:
            told = f"inverse products of this model; these have another {', another '.join(differing)}"
            raise InvalidOption("test_data", test_data, told)
        size, vectors = self.objective.num_params, test_data.vectors
        if vectors.shape[1] != size or not len(vectors):
            raise InvalidOption("test_data", test_data, f"at least one row of {size:,} real numbers each")
        self.check()
        return Solved(test_data, self.objective.space)

    def agree(self, call: str, *arguments: Any) -> None:
        """Refuse processes that do not make the same call: what they ask each other would not match."""
        if self.objective.processes.count == 1:
            return
        self.objective.agree()
        settings = {
            "the function that they call": call,
            "its arguments": arguments,
            "the curvature": type(self._inverse.operator),
            "the damping": self._inverse.damping,
            "the solver": self._inverse.solver,
        }
        digests = {name: Contents().digest(value, deep=False) for name, value in settings.items()}
        self.objective.processes.require_same(digests)

    def _require_same(self, what: str, batches: Batches) -> None:
        if self.objective.processes.count > 1:
            self.objective.processes.require_same({what: bytes.fromhex(fingerprint.of_data(batches))})

    def check(self) -> None:
        """Once: refuse training data that a loss has no value for, and warn where this is no optimum."""
        if not self._data_checked:
            check_values(self.objective, "training")
            if self._train_loss is not None:
                check_values(self.objective.on(self.objective.batches.data, self._train_loss), "training")
            self._data_checked = True
        if not self._optimum_checked:
            warn_unless_optimal(self.objective)
            self._optimum_checked = True

    def fingerprints(self) -> dict[str, str]:
        """Of what an inverse product depends on besides its test point, by the names that errors use."""
        return {
            **fingerprint.of_objective(self.objective),
            "curvature": fingerprint.of_operator(self.inverse.operator, self.objective),
            "damping": repr(self.inverse.damping),
            "version": repr(self._version),
        }


def without_curvature(
    objective: Objective,
    train_loss: Callable[..., Any] | None,
    version: str | None,
    *,
    value: float = 1.0,
    anywhere: bool = True,
) -> TrainedModel:
    """A model with a multiple of the identity in the place of its curvature."""
    check_model(objective, train_loss, version)
    operator = ScalarMatrix(objective.space, value)
    return TrainedModel(
        objective, inverse(operator, 0.0, ClosedForm()), train_loss, version, anywhere=anywhere
    )
