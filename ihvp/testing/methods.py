"""The methods of the protocol as functions of a vector, with what they should give: one row each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ihvp._problems import TanhMLP
from ihvp.algebra import to_numpy
from ihvp.testing.case import Case

PIECE = 4
"""The rows of a piece in ``hvp_sum``."""


@dataclass(frozen=True)
class Method:
    """One method of the protocol."""

    name: str
    capability: str | None  # the capability that it belongs to; None for those that every backend has
    # of(case): the map of a vector to the method's result; a linearised map is made here, once
    of: Callable[[Case], Callable[[Any], Any]]
    # expected(problem, v): the result, in the form of numbers
    expected: Callable[[TanhMLP, NDArray[Any]], NDArray[Any]]
    product: bool = True  # whether it is a product, which backends may approximate
    of_vectors: bool = True  # whether the result depends on the vector
    like_vectors: bool = True  # whether the result is an array in the type of the vectors

    def numbers(self, result: Any) -> NDArray[Any]:
        """A result as one numpy array; derivatives by several inputs one below the other."""
        if self.name == "value":
            return np.asarray(float(result))
        if self.name == "push_forward":  # the outputs have two axes
            found = to_numpy(result)
            return found.reshape(-1, *found.shape[2:])
        if self.name != "input_derivatives":
            return to_numpy(result)
        parts = [to_numpy(part) for part in (result.values() if isinstance(result, dict) else result)]
        if parts[0].ndim == 2:
            return np.concatenate([part.ravel() for part in parts])
        return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1).T


def _rows(problem: TanhMLP) -> NDArray[Any]:
    return np.stack([problem.flat_gradient(rows=slice(i, i + 1)) for i in range(problem.rows)])


def _pieces(problem: TanhMLP) -> NDArray[Any]:
    whole = problem.rows // PIECE  # all of one size, so that their mean is the mean over all their rows
    return whole * problem.hessian(slice(0, whole * PIECE))


def _by_inputs(problem: TanhMLP, v: NDArray[Any]) -> NDArray[Any]:
    columns = v[:, None] if v.ndim == 1 else v
    each = [np.concatenate([part.ravel() for part in problem.input_derivatives(c)]) for c in columns.T]
    return each[0] if v.ndim == 1 else np.stack(each, axis=1)


METHODS = (
    Method(
        "grad",
        None,
        lambda case: lambda v: case.backend.grad(case.loss, case.params, case.batch),
        lambda problem, v: problem.flat_gradient(),
        product=False,
        of_vectors=False,
    ),
    Method(
        "hvp",
        None,
        lambda case: lambda v: case.backend.hvp(case.loss, case.params, case.batch, v),
        lambda problem, v: problem.hessian() @ v,
    ),
    Method(
        "linearize",
        "linearize",
        lambda case: case.optional.linearize(case.loss, case.params, case.batch),
        lambda problem, v: problem.hessian() @ v,
    ),
    Method(
        "hvp_sum",
        "uniform_batches",
        lambda case: lambda v: case.optional.hvp_sum(case.loss, case.params, case.batch, v, PIECE),
        lambda problem, v: _pieces(problem) @ v,
    ),
    Method(
        "batch_products",
        "batch_products",
        lambda case: lambda v: case.optional.batch_products(case.loss, case.params)(case.batch, v),
        lambda problem, v: problem.hessian() @ v,
    ),
    Method(
        "per_example_grads",
        "per_example_grads",
        lambda case: lambda v: case.optional.per_example_grads(case.loss, case.params, case.batch),
        lambda problem, v: _rows(problem),
        product=False,
        of_vectors=False,
    ),
    Method(
        "gnvp",
        "gauss_newton",
        lambda case: (
            lambda v: case.optional.gnvp(
                case.functions.predict, case.functions.output_loss, case.params, case.batch, v
            )
        ),
        lambda problem, v: problem.gauss_newton() @ v,
    ),
    Method(
        "linearize_gauss_newton",
        "linearize_gauss_newton",
        lambda case: case.optional.linearize_gauss_newton(
            case.functions.predict, case.functions.output_loss, case.params, case.batch
        ),
        lambda problem, v: problem.gauss_newton() @ v,
    ),
    Method(
        "push_forward",
        "push_forward",
        lambda case: (
            lambda v: case.optional.push_forward(case.functions.predict, case.params, case.batch, v)[0]
        ),
        lambda problem, v: problem.jacobian().reshape(-1, problem.size) @ v,
    ),
    Method(
        "value",
        "value",
        lambda case: lambda v: case.optional.value(case.functions.value, case.params, case.batch),
        lambda problem, v: np.asarray(problem.loss(np, problem.params, problem.batch)),
        product=False,
        of_vectors=False,
        like_vectors=False,
    ),
    Method(
        "example_products",
        "example_products",
        lambda case: lambda v: case.optional.example_products(case.loss, case.params, case.batch, v),
        lambda problem, v: _rows(problem) @ v,
        product=False,
    ),
    Method(
        "input_derivatives",
        "input_derivatives",
        lambda case: lambda v: case.optional.input_derivatives(case.loss, case.params, case.batch, v),
        _by_inputs,
        like_vectors=False,
    ),
)


def each_method_that(condition: Callable[[Method], bool]) -> pytest.MarkDecorator:
    """The test, once for each method of which ``condition`` holds."""
    methods = [method for method in METHODS if condition(method)]
    return pytest.mark.parametrize("method", methods, ids=lambda method: method.name)


each_method = each_method_that(lambda method: True)
