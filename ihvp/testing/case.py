"""What the contract is written with: a problem in the framework under test, and how equal is equal."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

import ihvp
from ihvp._problems import PROBLEMS, PredictingProblem, Problem, SeedToy, SoftmaxRegression, TanhMLP
from ihvp._registry import usable_plugin
from ihvp.algebra import to_numpy
from ihvp.backend import BackendPlugin, CurvatureBackend, Dialect, GradientFunction, SupportsProductError
from ihvp.space import VectorSpace

TOY = next(problem for problem in PROBLEMS if isinstance(problem, SeedToy))
NETWORK = next(problem for problem in PROBLEMS if isinstance(problem, TanhMLP))
SOFTMAX = next(problem for problem in PROBLEMS if isinstance(problem, SoftmaxRegression))
LARGE = TanhMLP(rows=300)
"""More rows than a backend is likely to take at once."""

_MARKS = ("grad", "requires_grad", "grad_fn", "trainable", "dtype", "shape")
"""What frameworks keep beside a parameter's values."""

each_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
each_dtype = pytest.mark.parametrize("dtype", ["float64", "float32"])


@dataclass(frozen=True)
class Functions:
    """What is differentiated: a problem in the dialect."""

    loss: Any  # what grad and hvp take
    value: Callable[..., Any]  # the loss, also where loss is a gradient
    # predict, output_loss: its two halves, of a problem that has them
    predict: Callable[..., Any] | None = None
    output_loss: Callable[..., Any] | None = None

    def each(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Functions:
        """The same with ``wrap`` of every function."""
        gradient = isinstance(self.loss, GradientFunction)
        return Functions(
            GradientFunction(wrap(self.loss.grad)) if gradient else wrap(self.loss),
            wrap(self.value),
            wrap(self.predict) if self.predict else None,
            wrap(self.output_loss) if self.output_loss else None,
        )


@dataclass(frozen=True)
class Case:
    """A problem in one framework and dtype: all that the protocol's methods take."""

    problem: Problem
    backend: CurvatureBackend
    functions: Functions
    params: Any
    batch: Any
    space: VectorSpace

    @property
    def loss(self) -> Any:
        """What ``grad`` and ``hvp`` take."""
        return self.functions.loss

    @property
    def optional(self) -> Any:
        """The backend, for what is not among the five members."""
        return self.backend

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

    def state(self) -> list[Any]:
        """All that a call could leave behind in the parameters, in a form that can be compared."""
        leaves = [self.params[key] for key in self.problem.params]
        marks = [[repr(getattr(leaf, mark, None)) for mark in _MARKS] for leaf in leaves]
        return [self.bits(), [id(leaf) for leaf in leaves], marks]


class Contract:
    """The backend under test by its name, and problems in its framework."""

    name: ClassVar[str]  # the backend's registered name

    @property
    def plugin(self) -> BackendPlugin:
        """The record."""
        return usable_plugin(self.name)

    @property
    def dialect(self) -> Dialect:
        """What this suite writes its losses in."""
        return dialect_of(self.name)

    def case(self, problem: Problem, dtype: str = "float64") -> Case:
        """``problem`` in the backend's framework."""
        params = self.parameters(problem.params, dtype)
        backend = self.plugin.factory(params)
        flat = backend.flatten(params)
        batch = tuple(array.astype(dtype) for array in problem.batch)
        functions = _functions(self.name, problem)
        return Case(problem, backend, functions, params, batch, VectorSpace.of(flat, backend, params))

    def parameters(self, arrays: Mapping[str, NDArray[Any]], dtype: str) -> Any:
        """Trainable parameters of a dtype; skips a dtype that the framework does not keep."""
        params = self.dialect.parameters({key: value.astype(dtype) for key, value in arrays.items()})
        kept = self.plugin.factory(params).flatten(params).dtype
        # Vectors of parameters in half precision have to be in single precision.
        if not any(name in str(kept) for name in (dtype, np.promote_types(dtype, np.float32).name)):
            variables = " ".join(f"{key}={value}" for key, value in self.plugin.environment.items())
            advice = f"; `ihvp contract {self.name}` sets {variables}" if variables else ""
            pytest.skip(f"{self.plugin.framework} turns {dtype} into {kept}{advice}")
        return params

    def change(self, case: Case, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Give parameters other values as a training step does: in place, where the framework can.

        Override it in your own class if your framework does that in another way.
        """
        values = self.parameters(arrays, str(to_numpy(case.space.zeros()).dtype))
        for key, array in arrays.items():
            if hasattr(case.params[key], "assign"):
                case.params[key].assign(array)
                continue
            try:
                case.params[key][...] = values[key]
            except TypeError:  # arrays that cannot change: a step replaces them in their container
                case.params[key] = values[key]

    def scalar(self, function: Callable[..., Any], gradient: Callable[..., Any]) -> Any:
        """An ad-hoc loss ``function(xp, params, batch)``, or its gradient where that is what counts."""
        if self.plugin.differentiates == "gradient":
            return GradientFunction(gradient)
        return functools.partial(function, self.dialect.xp)

    def objective(self, case: Case, data: Any = None, loss: Any = None, **options: Any) -> ihvp.Objective:
        """An objective of the case, on other data and with another loss if given."""
        loss = case.loss if loss is None else loss
        source = {"grad": loss.grad} if isinstance(loss, GradientFunction) else {"loss": loss}
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
            pytest.skip(f"{self.name} does not declare {capability}, which is optional")

    def close(
        self,
        case: Case,
        found: Any,
        expected: NDArray[Any],
        duty: str = "",
        *,
        product: bool = True,
        rows: int = 9,
    ) -> None:
        """Assert equality to what the dtype allows, relative to the size of ``expected``.

        The rounding of a sum grows with the number of its ``rows``.
        """
        eps = case.space.product_eps
        approximate = product and isinstance(case.backend, SupportsProductError)
        # Central differences lose a third of the digits; exact derivatives some last bits of a sum.
        tolerance = 20 * eps ** (2 / 3) if approximate else 50 * eps
        tolerance *= max(1.0, rows / 9)
        scale = max(float(np.max(np.abs(expected))), 1e-30)
        assert_allclose(to_numpy(found) / scale, expected / scale, rtol=0, atol=tolerance, err_msg=duty)


def at(problem: Problem, params: Mapping[str, NDArray[Any]] | None = None, batch: Any = None) -> Any:
    """The same problem at other parameters, or on another batch."""
    other = copy.copy(problem)
    other.params = problem.params if params is None else dict(params)
    other.batch = problem.batch if batch is None else batch
    return other


@contextmanager
def raises(error: type[Exception], duty: str) -> Iterator[None]:
    """Assert that the block raises ``error``."""
    try:
        yield
    except error:
        return
    except Exception as other:
        raise AssertionError(f"{duty}; it raised {type(other).__name__}: {other}") from other
    pytest.fail(f"{duty}; it raised nothing")


def dialect_of(name: str) -> Dialect:
    """The dialect of a backend's record."""
    dialect = usable_plugin(name).dialect
    assert dialect is not None, "the record's dialect is what this suite writes its losses in"
    return dialect()


@functools.cache
def _functions(name: str, problem: Problem) -> Functions:
    # Cached so that frameworks that compile a loss find it again in the next test.
    xp = dialect_of(name).xp
    value = functools.partial(problem.loss, xp)
    gradient = usable_plugin(name).differentiates == "gradient"
    loss = GradientFunction(problem.gradient) if gradient else value
    if not isinstance(problem, PredictingProblem):
        return Functions(loss, value)
    return Functions(
        loss, value, functools.partial(problem.predict, xp), functools.partial(problem.output_loss, xp)
    )
