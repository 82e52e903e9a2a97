"""What the contract is written with: a problem in the framework under test, and how equal is equal."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

import ihvp
from ihvp._problems import PROBLEMS, Problem, SeedToy, SoftmaxRegression, TanhMLP
from ihvp._registry import usable_plugin
from ihvp.algebra import to_numpy
from ihvp.backend import BackendPlugin, CurvatureBackend, GradientFunction, SupportsProductError
from ihvp.space import VectorSpace

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


class Contract:
    """The backend under test by its name, and problems in its framework.

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


@functools.cache
def _loss(name: str, problem: Problem) -> Any:
    # Cached so that frameworks that compile a loss find it again in the next test.
    plugin = usable_plugin(name)
    if plugin.differentiates == "gradient":
        return GradientFunction(problem.gradient)
    assert plugin.dialect is not None
    return functools.partial(problem.loss, plugin.dialect().xp)
