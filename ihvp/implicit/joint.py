"""Parameters and hyperparameters in one structure, and losses as functions of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np

from ihvp import algebra
from ihvp.arguments import check_function
from ihvp.backend import Batch, CurvatureBackend, GradientFunction, Params, SupportsImplicit, Vector
from ihvp.data import map_leaves
from ihvp.errors import GradientMismatch, InvalidOption, MissingCapability, ParameterError, describe


@dataclass(frozen=True)
class JointLoss:
    """``loss(params, hyper, batch)`` of both in one; equal for equal losses, so compiled code is found again.

    A ``single`` array of hyperparameters is in a list, as parameters of every framework may be.
    """

    loss: Callable[..., Any]
    single: bool

    def __call__(self, both: Any, batch: Batch) -> Any:
        hyper = both[1]
        return self.loss(both[0], hyper[0] if self.single else hyper, batch)


@dataclass(frozen=True)
class JointGradient(JointLoss):
    """The pair of gradients by the parameters and by the hyperparameters, in the structure of both."""

    def __call__(self, both: Any, batch: Batch) -> Any:
        pair = super().__call__(both, batch)
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            raise GradientMismatch(describe(pair), "a pair, by the parameters and by the hyperparameters")
        return pair[0], [pair[1]] if self.single else pair[1]


def joint_loss(option: str, loss: Any, single: bool, by_gradient: bool | None = None) -> Any:
    """A loss, or the gradient of one, as a function of both in one; of that kind which is said."""
    if by_gradient not in (None, isinstance(loss, GradientFunction)) and loss is not None:
        kind = (
            "an ihvp.backend.GradientFunction"
            if by_gradient
            else "a function that the framework differentiates"
        )
        raise InvalidOption(option, loss, f"{kind}, as the inner loss is")
    if isinstance(loss, GradientFunction):
        return GradientFunction(JointGradient(loss.grad, single), loss.loss and JointLoss(loss.loss, single))
    check_function(option, loss, "a function of the parameters, the hyperparameters and a batch", takes=3)
    if loss is None:
        raise ParameterError(
            f"{option} is None; expected a function of parameters, hyperparameters and a batch."
        )
    return JointLoss(loss, single)


def implicit(backend: Any) -> Any:
    """The backend, where the framework can be told a derivative."""
    if isinstance(backend, SupportsImplicit):
        return backend
    raise MissingCapability(
        type(backend).__name__, "implicit", "Use torch, JAX or TensorFlow, or ihvp.hypergradient."
    )


def joined(backend: CurvatureBackend, params: Params, hyper: Any) -> Any:
    """Both in one structure."""
    if isinstance(backend, SupportsImplicit):
        return backend.joint(params, hyper)
    return params, with_arrays(backend, params, hyper)


def with_arrays(backend: CurvatureBackend, params: Params, hyper: Any) -> Any:
    """The hyperparameters with numbers as arrays of the dtype of the parameters' vectors."""
    dtype = algebra.to_numpy(backend.flatten(params)[:0]).dtype

    def lifted(leaf: Any) -> Any:
        if isinstance(leaf, (float, np.floating)):
            return np.asarray(leaf, dtype if isinstance(leaf, float) else None)
        kind = getattr(leaf, "dtype", np.dtype(float))
        if leaf is None or isinstance(leaf, (Number, str)) or "float" not in str(kind):
            raise ParameterError(
                f"Found {describe(leaf)} ({np.asarray(leaf).dtype}) among the hyperparameters; expected "
                "arrays or numbers of a floating dtype, alone or in dicts, lists and tuples."
            )
        return leaf

    return map_leaves(lifted, hyper)


def like_given(backend: CurvatureBackend, vector: Vector, held: Any, given: Any) -> Any:
    """A vector in the structure that hyperparameters were ``given`` in, those that are ``held`` for them.

    Numbers in the place of numbers, and numpy arrays in that of numpy arrays.
    """

    def leaf(original: Any, value: Any) -> Any:
        if isinstance(original, float):
            return float(value)
        if isinstance(original, (np.ndarray, np.floating)):
            return algebra.to_numpy(value)
        return value

    return map_leaves(leaf, given, backend.unflatten(vector, held))
