"""Discovery and choice of backends.

Plugins are found through the entry-point group ``ihvp.backends`` on first use, never at import, and each
is loaded inside a guard of its own, so that one broken plugin never breaks the others. Nothing here
imports a framework; only a record's ``factory`` does.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from ihvp.backend import BackendPlugin, CurvatureBackend, Params
from ihvp.errors import (
    BackendNotInstalled,
    BrokenBackend,
    InvalidOption,
    MixedFrameworks,
    UndeterminedBackend,
    UnknownBackend,
    describe,
)

ENTRY_POINT_GROUP = "ihvp.backends"


@dataclass(frozen=True)
class BackendInfo:
    """One registered backend, as :func:`backends` lists it.

    Attributes
    ----------
    name, framework, install : str
        Its name, its framework's import name, and the command that installs the framework.
    installed : bool
        Whether the framework can be found on this machine.
    version : str or None
        The framework's installed version.
    capabilities : frozenset of str
        The optional capabilities that the plugin declares.
    error : str or None
        Why the plugin could not be loaded, if it could not.
    """

    name: str
    framework: str
    install: str
    installed: bool
    version: str | None
    capabilities: frozenset[str]
    error: str | None = None


@dataclass(frozen=True)
class _Registered:
    plugins: Mapping[str, BackendPlugin]
    broken: Mapping[str, Exception]

    @property
    def names(self) -> list[str]:
        return sorted([*self.plugins, *self.broken])

    def plugin(self, name: str) -> BackendPlugin:
        if name in self.broken:
            raise BrokenBackend(name, self.broken[name]) from self.broken[name]
        if name not in self.plugins:
            raise UnknownBackend(name, self.names)
        return self.plugins[name]


@functools.cache
def registered() -> _Registered:
    """All plugins of this environment, loaded once."""
    import pluggy  # only here: importing ihvp must stay as cheap as importing numpy and scipy

    from ihvp import _hookspecs

    manager = pluggy.PluginManager("ihvp")
    manager.add_hookspecs(_hookspecs)
    plugins: dict[str, BackendPlugin] = {}
    broken: dict[str, Exception] = {}
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            manager.register(entry.load(), name=entry.name)
        except Exception as error:
            broken[entry.name] = error
    for implementation in manager.hook.ihvp_backend.get_hookimpls():
        try:
            plugins[implementation.plugin_name] = _checked(
                implementation.function(), implementation.plugin_name
            )
        except Exception as error:
            broken[implementation.plugin_name] = error
    for name, _ in manager.list_name_plugin():
        if name not in plugins and name not in broken:
            broken[name] = AttributeError("it defines no hook implementation named ihvp_backend")
    return _Registered(plugins, broken)


def _checked(record: Any, name: str) -> BackendPlugin:
    if not isinstance(record, BackendPlugin):
        raise TypeError(f"ihvp_backend() returned {describe(record)}; expected an ihvp.backend.BackendPlugin")
    if record.name != name:
        raise ValueError(f"its record is named {record.name!r}; expected {name!r}, its entry point's name")
    return record


def _installed(plugin: BackendPlugin) -> bool:
    try:
        return importlib.util.find_spec(plugin.framework) is not None
    except (ImportError, ValueError):
        return False


def _version(framework: str) -> str | None:
    try:
        return importlib.metadata.version(framework)
    except importlib.metadata.PackageNotFoundError:
        owners = importlib.metadata.packages_distributions().get(framework, [])
        return importlib.metadata.version(owners[0]) if owners else None


def backends() -> list[BackendInfo]:
    """The registered backends, installed or not, without importing any framework.

    Returns
    -------
    list of BackendInfo
        Sorted by name.

    Examples
    --------
    >>> import ihvp
    >>> [info.name for info in ihvp.backends() if info.name == "numdiff"]
    ['numdiff']
    """
    found = registered()
    rows = []
    for plugin in found.plugins.values():
        installed = _installed(plugin)
        rows.append(
            BackendInfo(
                plugin.name,
                plugin.framework,
                plugin.install,
                installed,
                _version(plugin.framework) if installed else None,
                plugin.capabilities,
            )
        )
    for name, error in found.broken.items():
        text = f"{type(error).__name__}: {error}"
        rows.append(BackendInfo(name, "", "", False, None, frozenset(), text))
    return sorted(rows, key=lambda row: row.name)


def usable_plugin(name: str) -> BackendPlugin:
    """The record of ``name``, whose framework is known to be installed.

    Raises
    ------
    UnknownBackend, BrokenBackend, BackendNotInstalled
    """
    plugin = registered().plugin(name)
    if not _installed(plugin):
        raise BackendNotInstalled(name, plugin.framework, plugin.install)
    return plugin


class Selection:
    """A chosen backend; as a context manager it ends the choice on exit, once."""

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self.name, self.options = name, dict(options)
        self._token: Token[Selection | None] = _selected.set(self)

    def __enter__(self) -> Selection:
        return self

    def __exit__(self, *exc: object) -> None:
        _selected.reset(self._token)


_selected: ContextVar[Selection | None] = ContextVar("ihvp_backend", default=None)


def use(name: str, **options: Any) -> Selection:
    """Make ``name`` the backend of every objective that is made from here on.

    The choice belongs to the current context (``contextvars``): other threads and async tasks keep theirs,
    and a new thread starts without one.

    Parameters
    ----------
    name : str
        A name that :func:`backends` lists.
    **options
        Passed to the backend, such as ``step=1e-2`` for ``"numdiff"``.

    Returns
    -------
    Selection
        ``with ihvp.use("jax"): …`` restores the previous choice at the end of the block.

    Raises
    ------
    UnknownBackend
        The name is not registered; the known ones are listed.
    BackendNotInstalled
        The framework is missing; the text says how to install it.
    BrokenBackend
        The plugin itself fails; its own error is chained.

    Examples
    --------
    >>> import ihvp
    >>> with ihvp.use("numdiff", order=4) as selection:
    ...     selection.name
    'numdiff'
    """
    usable_plugin(name)
    return Selection(name, options)


def create_backend(
    params: Params, choice: str | CurvatureBackend | None = None, *, has_gradient: bool = False
) -> CurvatureBackend:
    """The backend for ``params``: the given one, else the one in use, else the one of the parameters' type.

    Parameters
    ----------
    params
        The parameters.
    choice : str or CurvatureBackend, optional
        A registered name, or a backend that is used as it is.
    has_gradient : bool
        Whether the gradient is given by hand, so that a backend that differentiates gradients can work alone.
    """
    if choice is not None and not isinstance(choice, str):
        if not isinstance(choice, CurvatureBackend):
            raise InvalidOption(
                "backend",
                choice,
                "a registered name or an object with the five members of ihvp.backend.CurvatureBackend",
            )
        return choice
    selection = _selected.get()
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
    owners = _owners(params) - {plugin.name}
    if plugin.differentiates == "gradient":
        return None if not owners else create_backend(params, _only(owners))
    foreign = {name for name in owners if registered().plugins[name].differentiates == "loss"}
    if foreign and plugin.types:
        raise MixedFrameworks(
            [f"parameters of {name}" for name in sorted(foreign)],
            f"parameters for the chosen backend {plugin.name!r}",
            "Convert the parameters or choose their own backend.",
        )
    return None


def _infer(params: Params, has_gradient: bool) -> str:
    owners = _owners(params)
    if owners:
        name = _only(owners)
        if registered().plugins[name].differentiates == "gradient" and not has_gradient:
            raise _needs_gradient(name)
        return name
    raise UndeterminedBackend(f"parameters of type {describe(params)}", registered().names)


def _needs_gradient(name: str) -> UndeterminedBackend:
    return UndeterminedBackend(
        "numpy parameters with a loss alone",
        registered().names,
        f"The backend {name!r} differentiates a gradient: pass grad=…, or use the arrays of a framework "
        "that differentiates losses.",
    )


def _only(owners: set[str]) -> str:
    if len(owners) > 1:
        raise MixedFrameworks(
            [f"parameters of {name}" for name in sorted(owners)],
            "parameters of one framework",
            "Convert them to one framework, or make one objective for each.",
        )
    return next(iter(owners))


def _owners(params: Params) -> set[str]:
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
