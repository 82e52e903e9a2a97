"""The vector space of the parameters: where vectors live, and the forms in which a caller may pass them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.arguments import is_special, shape_of
from ihvp.backend import CurvatureBackend, Params, Vector, coarsest_eps
from ihvp.errors import (
    IhvpError,
    MixedFrameworks,
    TracedValue,
    VectorError,
    WrongDevice,
    WrongDtype,
    WrongShape,
    describe,
    instead,
    is_traced,
)
from ihvp.processes import Processes

Leave = Callable[[Vector], Any]
"""Turns a flat result back into the form in which the caller passed the vector."""


@dataclass(frozen=True, eq=False)
class VectorSpace:
    """Vectors of length ``size`` in float32 or float64 on one device, or all on each device of JAX's mesh.

    Dtype and device are as the array library spells them, and ``xp`` is its Array API namespace. With a
    backend and parameters, vectors may also be written in the structure of these. ``processes`` have the same
    vectors, and parts of the data that matrices on them are means over.
    """

    size: int
    dtype: Any
    device: Any
    xp: Any
    backend: CurvatureBackend | None = None
    params: Params = None
    processes: Processes = field(default_factory=Processes)

    @classmethod
    def of(
        cls, vector: Vector, backend: CurvatureBackend | None = None, params: Params = None
    ) -> VectorSpace:
        """The space that ``vector`` belongs to."""
        if is_traced(vector):
            raise TracedValue("A vector")
        xp, device = array_api_compat.array_namespace(vector), algebra.device(vector)
        if xp.isdtype(vector.dtype, "real floating") and xp.finfo(vector.dtype).bits < 32:
            raise WrongDtype(vector.dtype, f"{xp.float32}, as vectors of parameters in half precision have")
        processes = Processes.of(backend, vector)
        return cls(vector.shape[0], vector.dtype, device, xp, backend, params, processes)

    def __reduce__(self) -> tuple[Any, ...]:
        # A namespace is a module, and a device belongs to its process: another one looks both up anew.
        if self.backend is None:
            return VectorSpace.of, (self.zeros(),)
        return _unpickled, (self.backend, self.params)

    def matches(self, other: VectorSpace) -> bool:
        """Whether vectors of the two spaces may be added."""
        return (self.size, self.dtype, self.device) == (other.size, other.dtype, other.device) and (
            self.xp is other.xp
        )

    @property
    def eps(self) -> float:
        """The machine epsilon of the vectors' dtype."""
        return float(self.xp.finfo(self.dtype).eps)

    @property
    def smallest(self) -> float:
        """The smallest number with all digits, and with a reciprocal."""
        return float(self.xp.finfo(self.dtype).smallest_normal)

    @cached_property
    def product_eps(self) -> float:
        """The machine epsilon that models compute products with: above ``eps`` in half precision."""
        return self.eps if self.backend is None else coarsest_eps(self.backend, self.params)

    @property
    def unsure(self) -> float:
        """Relative to the largest, how far rounding may take an eigenvalue from zero."""
        return max(10 * self.eps, self.product_eps)

    @property
    def itemsize(self) -> int:
        """The bytes of one number."""
        return int(self.xp.finfo(self.dtype).bits // 8)

    @property
    def is_numpy(self) -> bool:
        """Whether the vectors are numpy arrays."""
        return bool(array_api_compat.is_numpy_namespace(self.xp))

    def zeros(self, *columns: int) -> Vector:
        """A vector ``(P,)`` of zeros, or a block ``(P, k)``."""
        return self.xp.zeros((self.size, *columns), dtype=self.dtype, device=self.device)

    def asarray(self, values: NDArray[Any]) -> Vector:
        """``values`` as an array of this space's library, dtype and device."""
        return algebra.as_array(values, self.xp, self.dtype, self.device)

    def identity_columns(self, start: int, stop: int) -> Vector:
        """Columns ``start:stop`` of the identity, ``(P, stop − start)``."""
        return self.xp.eye(self.size, stop - start, k=-start, dtype=self.dtype, device=self.device)

    def enter(self, v: Any) -> tuple[Vector, Leave]:
        """``v`` as a flat array of this space, which is never a changed ``v``, and the way back.

        ``v`` is ``(P,)`` or ``(P, k)`` in this space's array type or numpy's, or has the parameters' own
        structure. The way back turns a flat result into its form: numpy for numpy, structure for structure.
        WrongShape, WrongDtype, WrongDevice, MixedFrameworks or a VectorError say what is wrong with it.
        """
        if is_traced(v):
            raise TracedValue("v")
        if is_special(v):
            raise VectorError(f"v is {describe(v)}; expected a plain array. Pass numpy.asarray(v).")
        if isinstance(v, np.ndarray) and not self.is_numpy:
            self._check_shape(v.shape)
            expected = algebra.to_numpy(self.zeros(1)[:0]).dtype
            if v.dtype != expected:
                raise WrongDtype(v.dtype, expected)
            return self.asarray(v), algebra.to_numpy
        if not array_api_compat.is_array_api_obj(v):
            if self.backend is None:
                raise VectorError(
                    f"v is {describe(v)}; expected an array of shape ({self.size},) or ({self.size}, k)."
                    f"{instead(v)}"
                )
            return self._enter_structure(self.backend, v)
        if array_api_compat.array_namespace(v) is not self.xp:
            raise MixedFrameworks(
                [f"v of type {describe(v)}"],
                f"an array of {self.xp.__name__.rpartition('.')[2]} or numpy, as the parameters are",
                "Convert v with numpy.asarray(v).",
            )
        if array_api_compat.is_torch_array(v):
            v = v.detach()
        if getattr(v, "is_deleted", bool)():
            raise VectorError(
                "v was given up: its memory was donated to a function that JAX compiled. Pass a copy, made "
                "before, or compile that function without donate_argnums."
            )
        if v.shape != (self.size,) and v.shape == getattr(self.params, "shape", None):
            assert self.backend is not None  # params come with the backend that reads them
            return self._enter_structure(self.backend, v)
        place = array_api_compat.device(v)
        # Over a mesh in another way than vectors are, or over another mesh: what comes back lies there, too.
        moved = hasattr(place, "spec") and place != self.device
        return self._checked(v), (lambda x: array_api_compat.to_device(x, place)) if moved else _same

    def check(self, v: Vector) -> None:
        """Refuse an array of another shape or dtype than vectors and blocks have."""
        self._check_shape(v.shape)
        if v.dtype != self.dtype:
            raise WrongDtype(v.dtype, self.dtype)

    def _checked(self, v: Vector) -> Vector:
        self.check(v)
        place = array_api_compat.device(v)
        if place == self.device:
            return v
        if hasattr(place, "spec") or hasattr(self.device, "spec"):
            # Between arrays of one process and those of several the way is through the host.
            through_host = getattr(v, "is_fully_addressable", True) == self.processes.one_program
            return (
                self.asarray(algebra.to_numpy(v))
                if through_host
                else array_api_compat.to_device(v, self.device)
            )
        raise WrongDevice(place, self.device)

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) not in (1, 2) or shape[0] != self.size or 0 in shape[1:]:
            raise WrongShape(shape, self.size)

    def _enter_structure(self, backend: CurvatureBackend, v: Any) -> tuple[Vector, Leave]:
        pattern = backend.unflatten(self.zeros(), self.params)
        try:
            aligned = _align(v, pattern, "v")
            flat = backend.flatten(aligned)
        except VectorError:
            raise
        except IhvpError as error:
            raise VectorError(
                f"v is {describe(v)}; expected a flat array or the structure of the parameters. {error}"
                f"{instead(v)}"
            ) from error
        return self._checked(flat), lambda x: backend.unflatten(x, aligned)


def _unpickled(backend: CurvatureBackend, params: Params) -> VectorSpace:
    return VectorSpace.of(backend.flatten(params), backend, params)


def _same(x: Vector) -> Vector:
    return x


def _align(v: Any, pattern: Any, path: str) -> Any:
    """``v`` in the order of ``pattern``: a state dict may list its entries in another order, or too many."""
    if isinstance(pattern, Mapping):
        if not isinstance(v, Mapping) or set(v) != set(pattern):
            found = sorted(map(str, v)) if isinstance(v, Mapping) else describe(v)
            raise VectorError(
                f"{path} is {found}; expected a mapping with the keys {sorted(map(str, pattern))}."
            )
        aligned = {key: _align(v[key], pattern[key], f"{path}[{key!r}]") for key in pattern}
        # Frozen dictionaries, and the states of flax, are nodes of a kind of their own to JAX.
        return aligned if isinstance(pattern, dict) else type(pattern)(aligned)  # type: ignore[call-arg]
    if isinstance(pattern, (list, tuple)):
        if not isinstance(v, (list, tuple)) or len(v) != len(pattern):
            raise VectorError(
                f"{path} is {describe(v)}"
                + (f" of length {len(v)}" if isinstance(v, (list, tuple)) else "")
                + f"; expected a list or tuple of length {len(pattern)}."
            )
        items = [
            _align(item, part, f"{path}[{i}]") for i, (item, part) in enumerate(zip(v, pattern, strict=True))
        ]
        return type(v)(*items) if hasattr(v, "_fields") else type(v)(items)
    expected = shape_of(pattern)
    if expected is not None and shape_of(v) != expected:
        raise VectorError(f"{path} is {describe(v)}; expected an array of shape {expected}.")
    return v
