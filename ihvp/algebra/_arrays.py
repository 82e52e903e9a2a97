"""Arrays of any framework: their values, parts and precision, and functions of them compiled as one."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp.backend import Vector
from ihvp.errors import TracedValue, is_traced

Function = TypeVar("Function", bound=Callable[..., Any])

# Updates go through slices of this many rows: the product a·x then needs no third vector of length P, and
# stays in the processor's cache. On other devices a launch costs more than a cache miss.
_HOST_SLICE, _DEVICE_SLICE = 1 << 16, 1 << 24
# Sums of slices of this many products keep the digits that one sum in float32 would lose.
_SUMMED = 1 << 20


def outside_traces() -> AbstractContextManager[None]:
    """In the block, JAX computes what has values at once, also while it traces a function."""
    jax = sys.modules.get("jax")
    return (
        nullcontext() if jax is None else cast("AbstractContextManager[None]", jax.ensure_compile_time_eval())
    )


def to_numpy(array: Any) -> NDArray[Any]:
    """A numpy array with the values of ``array``, from any framework and device."""
    if isinstance(array, np.ndarray):
        return array
    if is_traced(array):
        raise TracedValue("A result")
    if not getattr(array, "is_fully_addressable", True):
        # The devices of other processes have parts of it, and hand them over.
        array = array_api_compat.to_device(array, device(array))
    # JAX copies to the host by itself and takes no device by name; torch is the other way round. TensorFlow's
    # tensors are no Array API objects, and numpy reads them.
    if array_api_compat.is_array_api_obj(array) and not array_api_compat.is_jax_array(array):
        array = array_api_compat.to_device(array, "cpu")
    return np.asarray(array)


def as_numpy(array: Any) -> NDArray[Any]:
    """The same of what may require a gradient; half precision in float32."""
    if array_api_compat.is_array_api_obj(array):
        xp = array_api_compat.array_namespace(array)
        # numpy does not know bfloat16, and float32 holds all of its numbers.
        array = wide(array) if xp.isdtype(array.dtype, "real floating") else array
    return to_numpy(array.detach() if hasattr(array, "detach") else array)


def device(array: Any) -> Any:
    """Where an array lies, in a form that holds for arrays of any shape.

    Of one of JAX over a mesh that is all of its devices, each with the whole; in what follows, XLA chooses
    what each of them computes.
    """
    found = array_api_compat.device(array)
    return _divided(found) if hasattr(found, "spec") else found


def without_explicit_axes(array: Any) -> Any:
    """The array; one of JAX over a mesh of explicit axes, where rows are not cut, over the same of others."""
    place: Any = getattr(array, "sharding", None)
    if not hasattr(place, "spec") or _mesh(place) == place.mesh:
        return array
    return array_api_compat.to_device(array, _divided(place, *place.spec))


def _divided(place: Any, *along: Any) -> Any:
    """The sharding over the same mesh that divides the axes of an array so."""
    return type(place)(_mesh(place), type(place.spec)(*along))


def _mesh(place: Any) -> Any:
    """The mesh of a sharding, whose axes XLA divides along by itself."""
    return type(place.mesh)(place.mesh.devices, place.mesh.axis_names)


def agreed(number: float, like: Vector) -> float:
    """A number that each process has found for itself, as the first of those has it that ``like`` lies over.

    Processes that run one program of JAX have to take the same branches.
    """
    if getattr(like, "is_fully_addressable", True):
        return number
    mesh = _mesh(like.sharding)
    one_each = _divided(like.sharding, mesh.axis_names)
    make = sys.modules["jax"].make_array_from_callback
    numbers = make((mesh.size,), one_each, lambda _: np.full(1, number, np.float32))
    return float(to_numpy(numbers)[0])


def as_like(values: Any, like: Vector) -> Vector:
    """``values`` as an array of the library, dtype and device of ``like``."""
    return as_array(values, array_api_compat.array_namespace(like), like.dtype, device(like))


def as_array(values: Any, xp: Any, dtype: Any, place: Any) -> Vector:
    """``values`` as an array of a library and dtype on a device."""
    if array_api_compat.is_jax_namespace(xp):
        # In two steps JAX takes a third of the time.
        return array_api_compat.to_device(xp.asarray(values, dtype=dtype), place)
    return xp.asarray(values, dtype=dtype, device=place)


def fused(*overwritten: int, fixed: tuple[int, ...] = ()) -> Callable[[Function], Function]:
    """Decorates a function of arrays: where the first is JAX's, it is compiled as one.

    JAX charges each operation by itself; other frameworks run the function as it is written.

    ``overwritten`` are the arguments that the function writes to where their type allows. Those of JAX give
    their memory up to results of the same shape, unless the same array is passed for another argument too.
    ``fixed`` are those that are no arrays, and can be hashed: it is compiled for each of their values.
    """
    first = next(i for i in range(len(fixed) + 1) if i not in fixed)

    def decorate(function: Function) -> Function:
        @functools.cache
        def compiled(given_up: tuple[int, ...]) -> Callable[..., Any]:
            # The core imports no framework; the one that an array belongs to is loaded.
            return sys.modules["jax"].jit(  # type: ignore[no-any-return]
                function, donate_argnums=given_up, static_argnums=fixed
            )

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            if not array_api_compat.is_jax_array(arguments[first]):
                return function(*arguments)
            identities = [id(argument) for argument in arguments]
            return compiled(tuple(i for i in overwritten if identities.count(identities[i]) == 1))(*arguments)

        return call  # type: ignore[return-value]

    return decorate


def on_host(array: Vector) -> bool:
    """Whether an array is in the host's memory."""
    return isinstance(array, np.ndarray) or str(array_api_compat.device(array)) == "cpu"


def slices(array: Vector, size: int | None = None) -> Iterator[slice]:
    """Rows of an array, so many at once; by default as many as an update takes."""
    size = size or (_HOST_SLICE if on_host(array) else _DEVICE_SLICE)
    return (slice(start, start + size) for start in range(0, array.shape[0], size))


def summed(array: Vector) -> Iterator[slice]:
    """Rows of an array, as many as one sum of products takes."""
    return slices(array, _SUMMED)


def wide(array: Vector) -> Vector:
    """An array in half precision as one in float32, which vectors and matrices have at least."""
    xp = array_api_compat.array_namespace(array)
    return xp.astype(array, xp.float32) if xp.finfo(array.dtype).bits < 32 else array


def copy(x: Vector) -> Vector:
    """The same values in memory of their own, of a block :func:`by_columns`."""
    xp = array_api_compat.array_namespace(x)
    if array_api_compat.is_jax_array(x):
        return _copied(x)
    if x.ndim == 1:
        return xp.asarray(x, copy=True)
    rows = xp.empty((x.shape[1], x.shape[0]), dtype=x.dtype, device=device(x))
    # In slices that fit in the cache, a transposition takes a third of the time.
    for part in slices(x, 1 << 14):
        rows[:, part] = x[part].T
    return rows.T


@fused()
def _copied(x: Vector) -> Vector:
    return x * 1  # a fraction of the time that JAX takes for a copy


def by_columns(x: Vector) -> Vector:
    """A block that holds one contiguous vector after another, which may be ``x``; JAX lays arrays out itself.

    So do the results of all functions here.
    """
    if isinstance(x, np.ndarray):
        return x if x.flags.f_contiguous else copy(x)
    if array_api_compat.is_torch_array(x) and not x.T.is_contiguous():
        return copy(x)
    return x


@fused()
def zeros_like(x: Vector) -> Vector:
    """Zeros of the same shape and dtype on the same device."""
    xp = array_api_compat.array_namespace(x)
    return xp.zeros_like(x) if x.ndim == 1 or array_api_compat.is_jax_array(x) else xp.zeros_like(x.T).T


def all_finite(x: Vector) -> bool:
    """Whether no entry is NaN or infinite."""
    # One pass without a temporary; only a sum that overflows needs the second look.
    with np.errstate(all="ignore"):
        total = _sum(x)
        if math.isfinite(float(total if getattr(total, "is_fully_addressable", True) else to_numpy(total))):
            return True
    xp = array_api_compat.array_namespace(x)
    return bool(xp.all(xp.isfinite(x)))


@fused()
def _sum(x: Vector) -> Any:
    return x.sum()


def columns(x: Vector, keep: NDArray[np.intp]) -> Vector:
    """The columns ``keep`` of a block, as a new block."""
    return take(x, keep, axis=1) if array_api_compat.is_jax_array(x) else take(x.T, keep, axis=0).T


def take(x: Any, numbers: NDArray[np.intp], axis: int) -> Any:
    """The rows or columns of these numbers, in this order, as a new array."""
    xp = array_api_compat.array_namespace(x)
    if array_api_compat.is_jax_array(x):
        return xp.take(x, numbers, axis=axis)  # they go to the device with what they index, and fast
    return xp.take(x, xp.asarray(numbers, device=device(x)), axis=axis)


def concatenate(blocks: list[Vector]) -> Vector:
    """Blocks side by side, as one block."""
    xp = array_api_compat.array_namespace(blocks[0])
    if array_api_compat.is_jax_array(blocks[0]):
        return xp.concat(blocks, axis=1)
    return xp.concat([block.T for block in blocks], axis=0).T


def column(block: Vector, place: int) -> Vector:
    """One column of a block; a vector is its only column."""
    return block if block.ndim == 1 else block[:, place]


def keep(block: Vector, mask: NDArray[np.bool_]) -> Vector:
    """The columns where ``mask`` holds: a new block, unless that is all of them or a vector."""
    if block.ndim == 1 or np.all(mask):
        return block
    return columns(block, np.flatnonzero(mask))


def join(parts: list[tuple[NDArray[np.intp], Vector]]) -> Vector:
    """Parts of a block by their column numbers, as one block in order."""
    if len(parts) == 1:
        return parts[0][1]
    numbers = np.concatenate([numbers for numbers, _ in parts])
    return columns(concatenate([part for _, part in parts]), np.argsort(numbers))
