"""What a function can read besides its arguments, as a digest that is the same in every process."""

from __future__ import annotations

import functools
import inspect
import numbers
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

from ihvp.digest import array_bytes, digest, plain_array


class Contents:
    """Digests of values, in which every array is read once.

    Of a function enter its code, its defaults, the values in its closure, and the global variables that it
    names; so does what functions among these refer to. Containers, dataclasses, namespaces and objects that
    can be called enter with all that they hold, other objects and models with their attributes, and the
    objects among those by their class; models within models enter. Private attributes enter where the class
    is the caller's and no Keras model.

    Objects that are ``known`` by other means do not enter.
    """

    def __init__(self, known: Iterable[Any] = ()) -> None:
        # The objects too: while they live nothing else has their numbers.
        self._digests = {(id(value), deep): (value, b"") for value in known for deep in (True, False)}

    def digest(self, value: Any, deep: bool = True) -> bytes:
        """Of a value; the attributes of an object enter where it is ``deep``."""
        if value is None or isinstance(value, (str, bytes, numbers.Number)):
            return digest(repr(value).encode())
        key, kind = (id(value), deep or hasattr(value, "dtype")), type(value).__qualname__.encode()
        if key not in self._digests:
            # What refers to itself finds this.
            self._digests[key] = value, kind
            self._digests[key] = value, digest(kind, *self._parts(value, deep))
        return self._digests[key][1]

    def _parts(self, value: Any, deep: bool) -> Iterator[bytes]:
        parts: Iterable[Any] = ()
        if isinstance(value, (set, frozenset)):
            yield from sorted(self.digest(part, deep) for part in value)
        elif isinstance(value, (tuple, list)):
            parts = value
        elif isinstance(value, Mapping):
            parts = (part for item in value.items() for part in item)
        elif isinstance(value, CodeType):
            parts = value.co_code, value.co_names, value.co_consts
        elif isinstance(value, FunctionType):
            parts = value.__code__, value.__defaults__, value.__kwdefaults__, _variables(value)
        elif isinstance(value, (MethodType, property)):
            parts = [getattr(value, name, None) for name in ("__func__", "__self__", "fget", "fset")]
        elif isinstance(value, (type, ModuleType)):
            yield _name(value)
            parts, deep = _members(value), False
        elif (plain := plain_array(value)) is not None:
            yield f"{value.dtype}{plain.shape}".encode()
            yield self.digest(plain.tolist()) if plain.dtype.hasobject else array_bytes(plain)
        elif hasattr(value, "__wrapped__"):
            parts = (value.__wrapped__,)
        else:
            attributes, model = _attributes(value), _model_parts(value)
            open_ = is_dataclass(value) or callable(value) or isinstance(value, (SimpleNamespace, Namespace))
            if not attributes and not hasattr(value, "dtype"):
                # Such as a dtype; others are told from their like by their place in memory alone.
                yield _name(value) if " at 0x" in repr(value) else repr(value).encode()
            parts = type(value), model, attributes if deep or open_ or model else None
            deep = deep and open_ and not model
        for part in parts:
            yield self.digest(part, deep)


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


def _name(value: Any) -> bytes:
    name = getattr(value, "__qualname__", getattr(value, "__name__", type(value).__qualname__))
    module = getattr(value, "__module__", None)
    return f"{module}.{name}".encode() if is_installed(module) else str(name).encode()


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _variables(function: FunctionType) -> dict[str, Any]:
    """The values in a closure, and the globals that the code names, which of packages are not followed."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    # A cell is empty before its variable has a value.
    found = {name: cell.cell_contents for name, cell in cells if cell != CellType()}
    if not is_installed(function.__module__):
        named = {name: None for code in _codes(function.__code__) for name in code.co_names}
        found |= {name: function.__globals__[name] for name in named if name in function.__globals__}
    return found


def _members(value: type | ModuleType) -> Iterator[dict[str, Any]]:
    """The methods and settings of a class and its bases that are the caller's own."""
    for own in getattr(value, "__mro__", ()):
        if not is_installed(own.__module__):
            members = sorted(vars(own).items())
            yield {k: v for k, v in members if not k.startswith("__") or inspect.isfunction(v)}


def _attributes(value: Any) -> dict[str, Any]:
    cls = type(value)
    slots = (k for c in cls.__mro__ for k, v in vars(c).items() if inspect.ismemberdescriptor(v))
    attributes = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    attributes |= getattr(value, "__dict__", None) or {}
    keras = hasattr(value, "trainable_weights")
    hidden = ("_", "name") if keras else ("_",) if is_installed(cls.__module__) else ()
    return {
        name: attributes[name]
        for name in sorted(attributes)
        if not name.startswith(hidden)
        and not isinstance(inspect.getattr_static(cls, name, None), functools.cached_property)
    }


def _model_parts(value: Any) -> dict[str, Any]:
    """Of a model of torch or Keras: its arrays, frozen ones too, and the models within it."""
    if hasattr(value, "named_parameters") and hasattr(value, "named_children"):
        parts = [value.named_parameters(), value.named_buffers(), value.named_children()]
        return {f"{number} {name}": part for number, named in enumerate(parts) for name, part in named}
    if hasattr(value, "trainable_weights") and hasattr(value, "weights"):
        return {"weights": list(value.weights), "layers": list(getattr(value, "layers", ()))}
    return {}
