"""The backend of an objective: the given one, the one in use, or that of its parameters' type.

Types are told by the names of the packages that define them: no framework is imported to find out.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ihvp._registry import registered, selected, usable_plugin
from ihvp.backend import BackendPlugin, CurvatureBackend, Params
from ihvp.errors import BrokenBackend, InvalidOption, MixedFrameworks, UndeterminedBackend, describe, instead


def create_backend(
    params: Params, choice: str | CurvatureBackend | None = None, *, has_gradient: bool = False
) -> CurvatureBackend:
    """The backend for ``params``: the given one, else the one in use, else the one of the parameters' type.

    ``choice`` is a registered name, or a backend that is used as it is. ``has_gradient`` says that the
    gradient is given by hand, so that a backend that differentiates gradients can work alone.
    """
    if choice is not None and not isinstance(choice, str):
        if not isinstance(choice, CurvatureBackend):
            raise InvalidOption(
                "backend",
                choice,
                "a registered name or an object with the five members of ihvp.backend.CurvatureBackend",
            )
        return choice
    selection = selected.get()
    options: Mapping[str, Any] = {}
    if selection is not None and choice in (None, selection.name):
        plugin, options = usable_plugin(selection.name), selection.options
    else:
        plugin = usable_plugin(_infer(params, has_gradient) if choice is None else choice)
    inner = _check_owner(plugin, params)
    if plugin.differentiates == "gradient":
        if inner is None and not has_gradient:
            raise _needs_gradient(plugin.name)
        options = {**options, "inner": inner}
    try:
        return plugin.factory(params, **options)
    except ImportError as error:
        raise BrokenBackend(plugin.name, error) from error


def _check_owner(plugin: BackendPlugin, params: Params) -> CurvatureBackend | None:
    """The backend of the parameters' own framework if ``plugin`` works on top of it, else None."""
    others = owners_of(params) - {plugin.name}
    foreign = {name for name in others if registered().plugins[name].differentiates == "loss"}
    if plugin.differentiates == "gradient":
        return create_backend(params, _only(foreign)) if foreign else None
    if foreign and plugin.types:
        raise MixedFrameworks(
            [f"parameters of {name}" for name in sorted(foreign)],
            f"parameters for the chosen backend {plugin.name!r}",
            "Convert the parameters or choose their own backend.",
        )
    return None


def _infer(params: Params, has_gradient: bool) -> str:
    owners = owners_of(params)
    if owners:
        name = _only(owners)
        if registered().plugins[name].differentiates == "gradient" and not has_gradient:
            raise _needs_gradient(name)
        return name
    found = f"parameters of type {describe(params)}"
    raise UndeterminedBackend(found, registered().names, instead(params).strip())


def _needs_gradient(name: str) -> UndeterminedBackend:
    return UndeterminedBackend(
        "numpy parameters with a loss alone",
        registered().names,
        f"The backend {name!r} differentiates a gradient: pass grad=…, or in a hypergradient an "
        "ihvp.backend.GradientFunction; or use the arrays of a framework that differentiates losses.",
    )


def _only(owners: set[str]) -> str:
    if len(owners) > 1:
        raise MixedFrameworks(
            [f"parameters of {name}" for name in sorted(owners)],
            "parameters of one framework",
            "Convert them to one framework, or make one objective for each.",
        )
    return next(iter(owners))


def owners_of(params: Params) -> set[str]:
    """The backends that the leaves of ``params`` belong to; numpy beside another framework is neutral."""
    found = {owner for leaf_type in _leaf_types(params) if (owner := _owner_of_type(leaf_type))}
    plugins = registered().plugins
    specific = {name for name in found if plugins[name].differentiates == "loss"}
    return specific or found


def _leaf_types(params: Params) -> Iterator[type]:
    # A framework's own container (a module, a parameter dict) tells by its type; only others are opened.
    kind: Any = type(params)
    if _owner_of_type(kind) is not None:
        yield kind
    elif isinstance(params, Mapping):
        for value in params.values():
            yield from _leaf_types(value)
    elif isinstance(params, (list, tuple)):
        for value in params:
            yield from _leaf_types(value)
    elif is_dataclass(params) and not isinstance(params, type):
        for entry in fields(params):
            yield from _leaf_types(getattr(params, entry.name, None))


@functools.cache
def _owner_of_type(leaf_type: type[Any]) -> str | None:
    """The backend whose framework defines ``leaf_type`` or one of its bases; only names are compared."""
    roots = [base.__module__.partition(".")[0] for base in leaf_type.__mro__]
    for name, plugin in registered().plugins.items():
        if any(root in plugin.types for root in roots):
            return name
    return None
