"""What a function can read besides its arguments, as a digest that is the same in every process."""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import numbers
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import GradientFunction
from ihvp.influence.names import Names, names_in

# What lies deeper within containers, functions and objects does not enter: it may refer to anything.
_DEPTH = 48

# Called by a framework, where the code of a loss names only the object.
_ENTRIES = frozenset({"__call__", "forward", "call"})


class Contents:
    """Digests of values, in which every object is read once.

    Numbers, strings, arrays, containers, functions, and the attributes of objects enter. Of the objects of
    installed packages only models, namespaces, dataclasses, what can be called, and arrays do: a lock or an
    optimizer differs from run to run. So does not what the functions themselves change while they run.

    Parameters
    ----------
    known : iterable
        Objects that are known by other means and do not enter.
    """

    def __init__(self, known: Iterable[Any] = ()) -> None:
        # The objects too: while they live nothing else has their numbers.
        self._digests: dict[int, tuple[Any, bytes]] = {id(value): (value, b"") for value in known}
        self._within: list[Any] = []
        self._names: list[Names] = []

    def digest(self, value: Any) -> bytes:
        if value is None or isinstance(value, (str, bytes, numbers.Number)):
            return _hash(repr(value).encode())
        if id(value) in self._digests:
            return self._digests[id(value)][1]
        # Objects may refer to themselves.
        if len(self._within) >= _DEPTH or any(value is other for other in self._within):
            return _hash(type(value).__qualname__.encode())
        self._within.append(value)
        try:
            found = _hash(type(value).__qualname__.encode(), *self._parts(value))
        finally:
            self._within.pop()
        if not isinstance(value, ModuleType):
            self._digests[id(value)] = value, found
        return found

    def _parts(self, value: Any) -> Iterator[bytes]:
        if isinstance(value, enum.Enum):
            yield value.name.encode()
        elif isinstance(value, (set, frozenset)):
            yield from sorted(map(self.digest, value))
        elif isinstance(value, (tuple, list)):
            yield from map(self.digest, value)
        elif isinstance(value, dict) or (isinstance(value, Mapping) and not _is_of_python(type(value))):
            yield from (self.digest(part) for item in value.items() for part in item)
        elif isinstance(value, CodeType):
            yield from (value.co_code, repr(value.co_names).encode(), self.digest(value.co_consts))
        elif isinstance(value, ModuleType):
            if not is_installed(value.__name__):
                named = {name for names in self._names[-1:] for name in names.attributes}
                yield from self._items({name: vars(value)[name] for name in named & vars(value).keys()})
        elif isinstance(value, type):
            yield _name(value)
            yield from self._class(value)
        elif (plain := plain_array(value)) is not None:
            yield f"{value.dtype}{plain.shape}".encode()
            yield self.digest(plain.tolist()) if plain.dtype.hasobject else array_bytes(plain)
        elif isinstance(value, GradientFunction):
            yield self.digest(value.grad)
        elif isinstance(value, functools.partial):
            yield from map(self.digest, (value.func, value.args, sorted(value.keywords.items())))
        elif isinstance(value, (staticmethod, classmethod, MethodType)):
            yield from self._function(value.__func__, getattr(value, "__self__", None))
        elif isinstance(value, property):
            yield from map(self.digest, (value.fget, value.fset))
        elif callable(value) and hasattr(value, "__wrapped__"):
            yield self.digest(inspect.unwrap(value))
        elif isinstance(value, FunctionType):
            yield from self._function(value)
        elif inspect.isbuiltin(value):
            yield from (_name(value), self.digest(value.__self__))
        else:
            yield from self._object(value)

    def _items(self, named: Mapping[str, Any]) -> Iterator[bytes]:
        for name in sorted(named):
            yield from (name.encode(), self.digest(named[name]))

    def _function(self, function: Any, owner: Any = None) -> Iterator[bytes]:
        """Of a function, and of the object that it is a method of."""
        if not isinstance(function, FunctionType):
            yield from map(self.digest, (function, owner))
            return
        names = names_in(function.__code__)
        named = {} if is_installed(function.__module__) else _globals(function, names)
        named |= _nonlocals(function)
        with self._reading(names):
            yield from map(
                self.digest, (function.__code__, function.__defaults__, function.__kwdefaults__, owner)
            )
            yield from self._items({k: v for k, v in named.items() if k not in names.changed_variables})

    @contextmanager
    def _reading(self, names: Names) -> Iterator[None]:
        self._names.append(names)
        try:
            yield
        finally:
            self._names.pop()

    def _class(self, cls: type) -> Iterator[bytes]:
        """Of the methods and settings of a class, and of its bases, that are the caller's own."""
        for own in _own_classes(cls):
            kept = self._kept(own, vars(own))
            yield from self._items(
                {k: v for k, v in kept.items() if not _is_dunder(k) or inspect.isfunction(v)}
            )

    def _object(self, value: Any) -> Iterator[bytes]:
        cls = type(value)
        yield _name(value) if callable(value) and not hasattr(value, "__dict__") else _name(cls)
        yield self.digest(cls)
        attributes, parts = _attributes(value), _model_parts(value)
        if parts:
            # Keras numbers its layers.
            attributes.pop("name", None)
        if parts or _own_classes(cls) or callable(value) or is_dataclass(value) or _is_namespace(value):
            yield from self._items(self._kept(cls, attributes))
        else:
            arrays = {k: v for k, v in attributes.items() if k[0] != "_" and plain_array(v) is not None}
            yield from self._items(arrays)
        yield from self._items(parts)

    def _kept(self, cls: type, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Without what changes while the functions around run, and what only an installed package reads."""
        methods: dict[str, list[Names]] = {}
        for own in _own_classes(cls):
            for name, method in vars(own).items():
                if isinstance(function := _function_of(method), FunctionType):
                    methods.setdefault(name, []).append(names_in(function.__code__))
        read = {
            name for found in (self._names, *methods.values()) for each in found for name in each.attributes
        }
        reached = list(self._names)
        left = set(_ENTRIES)
        while left := left.union(*(each.attributes for each in reached)) & methods.keys():
            reached += methods.pop(left.pop())
        changed = {name for each in reached for name in each.changed_attributes}
        return {
            name: value
            for name, value in attributes.items()
            if name not in changed
            and (name[:1] != "_" or name in read or _is_dunder(name))
            and not isinstance(inspect.getattr_static(cls, name, None), functools.cached_property)
        }


@functools.lru_cache(maxsize=1024)
def is_installed(module: str | None) -> bool:
    """Whether a module is Python's or an installed package's: not the caller's to change between runs."""
    top = (module or "").partition(".")[0]
    if top == "__main__":
        return False
    if top in sys.stdlib_module_names or top == __name__.partition(".")[0]:
        return True
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def plain_array(array: Any) -> NDArray[Any] | None:
    """An array of any framework as numpy's, or None of what is no array or has no numbers."""
    if not (hasattr(array, "shape") and hasattr(array, "dtype")) or callable(array):
        return None
    try:
        plain = as_numpy(array)
    except Exception:  # a random key, a symbolic tensor, one without storage: each in its own way
        return None
    return None if plain.dtype.hasobject and not isinstance(array, np.ndarray) else plain


def as_numpy(array: Any) -> NDArray[Any]:
    """An array of any framework; half precision in float32."""
    if not array_api_compat.is_array_api_obj(array):
        # TensorFlow's tensors are no Array API objects, and numpy reads them.
        return np.asarray(array)
    xp = array_api_compat.array_namespace(array)
    # numpy does not know bfloat16, and float32 holds all of its numbers.
    values = algebra.wide(array) if xp.isdtype(array.dtype, "real floating") else array
    return algebra.to_numpy(values.detach() if hasattr(values, "detach") else values)


def array_bytes(array: NDArray[Any]) -> Any:
    """Every bit of it."""
    if array.dtype.hasobject:
        return repr(array.tolist()).encode()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _hash(*parts: Any) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.digest()


def _name(value: Any) -> bytes:
    name = getattr(value, "__qualname__", getattr(value, "__name__", type(value).__qualname__))
    module = getattr(value, "__module__", None)
    return f"{module}.{name}".encode() if is_installed(module) else str(name).encode()


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _is_of_python(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in sys.stdlib_module_names


def _is_namespace(value: Any) -> bool:
    return isinstance(value, (SimpleNamespace, Namespace))


def _own_classes(cls: type) -> list[type]:
    return [own for own in cls.__mro__ if not is_installed(own.__module__)]


def _function_of(method: Any) -> Any:
    function = method.fget if isinstance(method, property) else getattr(method, "__func__", method)
    return inspect.unwrap(function) if callable(function) else function


def _globals(function: FunctionType, names: Names) -> dict[str, Any]:
    return {name: function.__globals__[name] for name in names.variables if name in function.__globals__}


def _nonlocals(function: FunctionType) -> dict[str, Any]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    # A cell is empty before its variable has a value.
    return {name: cell.cell_contents for name, cell in cells if cell != CellType()}


def _attributes(value: Any) -> dict[str, Any]:
    members = (
        name
        for cls in type(value).__mro__
        for name, kind in vars(cls).items()
        if inspect.ismemberdescriptor(kind)
    )
    found = {name: getattr(value, name) for name in members if hasattr(value, name)}
    attributes = getattr(value, "__dict__", None)
    return {**found, **attributes} if isinstance(attributes, dict) else found


def _model_parts(value: Any) -> dict[str, Any]:
    """Of a model of torch or Keras: its arrays, frozen ones too, and the models within it."""
    if hasattr(value, "named_parameters") and hasattr(value, "named_children"):
        parts = [value.named_parameters(), value.named_buffers(), value.named_children()]
        return {f"{number} {name}": part for number, named in enumerate(parts) for name, part in named}
    if hasattr(value, "trainable_weights") and hasattr(value, "weights"):
        return {"weights": list(value.weights), "layers": list(getattr(value, "layers", ()))}
    return {}
