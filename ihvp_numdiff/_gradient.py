"""What a caller's gradient function returned, checked, as one vector.

A new one, because such a function may return the same buffer from every call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from ihvp.backend import CurvatureBackend, Params, Vector
from ihvp.errors import GradientMismatch, ParameterError, describe
from ihvp_numdiff._arrays import floating_arrays, vector_dtype
from ihvp_numdiff._structure import align, rebuild


def flatten_gradient(gradient: Any, params: Params) -> np.ndarray:
    """A gradient by numpy parameters, in their structure or flat, as a new ``(P,)`` vector.

    Another structure or shape, or what is no real numbers, is a GradientMismatch.
    """
    return np.concatenate(_pieces(gradient, params), dtype=vector_dtype(floating_arrays(params)))


def subtract_gradient(total: np.ndarray, gradient: Any, params: Params) -> None:
    """Subtract a gradient by numpy parameters from ``total``, ``(P,)``, in place and without a copy."""
    start = 0
    for piece in _pieces(gradient, params):
        # Rounded to the dtype first, as the gradient in `total` was: equal gradients leave exact zeros.
        total[start : start + piece.size] -= piece.astype(total.dtype, copy=False)
        start += piece.size


def flatten_gradient_by(inner: CurvatureBackend, gradient: Any, params: Params) -> Vector:
    """A gradient by another framework's parameters, as ``(P,)`` in the array type of ``inner``.

    Accepted are a flat array, the structure of the parameters, and for containers that are not a dict,
    list or tuple (a module) the plain list of its gradients in order.
    """
    x = inner.flatten(params)
    xp: Any = array_namespace(x)
    size = x.shape[0]

    def vector(array: Any) -> Vector:
        return xp.asarray(array, dtype=x.dtype, device=device(x), copy=True)

    if _shape(gradient) == (size,):
        return vector(gradient)
    if isinstance(params, Mapping | list | tuple):
        aligned = list(align(gradient, params))
        for path, leaf, parameter in aligned:
            if _shape(leaf) != _shape(parameter):
                raise GradientMismatch(
                    f"{describe(leaf)} at {path}", f"an array of shape {_shape(parameter)}"
                )
        arrays = iter(leaf for _, leaf, _ in aligned)
        gradient = rebuild(params, lambda _: next(arrays))
    elif isinstance(gradient, list | tuple) and all(_shape(leaf) is not None for leaf in gradient):
        gradient = xp.concat([xp.reshape(vector(leaf), (-1,)) for leaf in gradient])
        return _of_size(gradient, size)
    try:
        return _of_size(vector(inner.flatten(gradient)), size)
    except ParameterError as error:
        raise GradientMismatch(describe(gradient), "the structure of the parameters") from error


def _pieces(gradient: Any, params: Params) -> list[np.ndarray]:
    size = sum(array.size for array in floating_arrays(params))
    if _shape(gradient) == (size,):
        return [_real_array(gradient, "gradient", (size,))]
    return [_real_array(leaf, path, array.shape).reshape(-1) for path, leaf, array in align(gradient, params)]


def _shape(value: Any) -> tuple[int, ...] | None:
    shape = getattr(value, "shape", None)
    return None if shape is None else tuple(shape)


def _of_size(vector: Vector, size: int) -> Vector:
    if vector.shape[0] != size:
        raise GradientMismatch(f"{vector.shape[0]} numbers", f"{size}, one for each parameter")
    return vector


def _real_array(value: Any, path: str, shape: tuple[int, ...]) -> np.ndarray:
    expected = f"an array of real numbers of shape {shape}"
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise GradientMismatch(f"{describe(value)} at {path}", expected) from error
    if array.shape != shape or array.dtype.kind not in "fiu":
        raise GradientMismatch(f"{describe(value)} at {path}, dtype {array.dtype}", expected)
    return array
