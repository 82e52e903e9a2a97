"""Parameters that are numpy arrays: to one vector and back."""

from __future__ import annotations

import numpy as np

from ihvp.backend import Params
from ihvp.errors import ParameterError, describe
from ihvp_numdiff._structure import leaves, rebuild


def floating_arrays(params: Params) -> list[np.ndarray]:
    """The arrays of nested dicts, lists and tuples, in order."""
    found = list(leaves(params))
    for path, leaf in found:
        if not isinstance(leaf, np.ndarray) or not np.issubdtype(leaf.dtype, np.floating):
            dtype = f" and dtype {leaf.dtype}" if isinstance(leaf, np.ndarray) else ""
            raise ParameterError(
                f"{path} is {describe(leaf)}{dtype}; expected numpy arrays of a real floating dtype, alone "
                "or in nested dicts, lists and tuples. Convert it, or differentiate over the backend of "
                "its own framework (inner=…)."
            )
    if sum(leaf.size for _, leaf in found) == 0:
        raise ParameterError(
            f"The parameters ({describe(params)}) hold no number; expected numpy arrays of a real floating "
            "dtype, alone or in nested dicts, lists and tuples. Pass what the gradient is taken by."
        )
    return [leaf for _, leaf in found]


def flatten(params: Params) -> np.ndarray:
    """All arrays as one new vector of :func:`vector_dtype`."""
    arrays = floating_arrays(params)
    return np.concatenate([array.reshape(-1) for array in arrays], dtype=vector_dtype(arrays))


def unflatten(vector: np.ndarray, like: Params) -> Params:
    """The parts of ``vector`` in the structure, shapes and dtypes of ``like``; views where they can be."""
    start = 0

    def take(array: np.ndarray) -> np.ndarray:
        nonlocal start
        start += array.size
        return vector[start - array.size : start].reshape(array.shape).astype(array.dtype, copy=False)

    return rebuild(like, take)


def vector_dtype(arrays: list[np.ndarray]) -> np.dtype:
    """The common dtype of the arrays, and no narrower than float32."""
    return np.result_type(np.float32, *arrays)


def epsilon(arrays: list[np.ndarray]) -> float:
    """The epsilon of the coarsest dtype among the arrays."""
    return max(float(np.finfo(dtype).eps) for dtype in {array.dtype for array in arrays})
