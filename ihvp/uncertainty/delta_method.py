"""Derivatives of functions of the parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ihvp import algebra
from ihvp.arguments import as_array, check_function, naming
from ihvp.backend import Params, SupportsLayers, Vector
from ihvp.errors import FunctionFailed, IhvpError, InvalidOption, MissingCapability, NonFinite
from ihvp.objective import Objective

Function = Callable[[Params], Any]


def value_of(objective: Objective, function: Function) -> np.ndarray[Any, Any]:
    """The function of the parameters, as numpy."""
    check_function("function", function, "a function of the parameters", takes=1)
    with naming(FunctionFailed, "function(params)"):
        value = as_array("what function returned", algebra.as_numpy(function(objective.params)))
    if not (value.size and np.all(np.isfinite(value))):
        raise InvalidOption("what function returned", value, "finite numbers, one or more")
    return value


def gradients_of(
    objective: Objective, function: Function | None, gradient: Any
) -> tuple[Vector, tuple[int, ...]]:
    """The derivatives of m functions as columns, ``(P, m)``, and the shape of what the function returns."""
    if (function is None) == (gradient is None):
        raise InvalidOption("function, gradient", (function, gradient), "one of them")
    space = objective.space
    if gradient is not None:
        flat, _ = space.enter(gradient)
        return (flat[:, None], ()) if flat.ndim == 1 else (flat, tuple(flat.shape[1:]))
    assert function is not None
    value, backend, params = value_of(objective, function), objective.backend, objective.params
    if isinstance(backend, SupportsLayers):
        # One compiled derivative serves all of the m functions.
        loss = backend.cotangent_loss(lambda params, batch: function(params))
        units = np.eye(value.size, dtype=value.dtype).reshape(value.size, *value.shape)
        try:
            columns = [backend.grad(loss, params, (None, [unit])) for unit in units]
        except (IhvpError, TypeError, ValueError) as error:
            expected = "a function that the framework differentiates, of the params that it is given"
            raise InvalidOption("function", function, expected) from error
    elif value.size == 1 and value.ndim == 0:
        columns = [backend.grad(lambda params, batch: function(params), params, None)]
    else:
        advice = "Pass gradient=…, the derivative (P, m) of the m functions."
        raise MissingCapability(type(backend).__name__, "layers", advice)
    found = space.xp.stack(columns, axis=1)
    if not algebra.all_finite(found):
        raise NonFinite("The gradient of the function")
    return found, value.shape
