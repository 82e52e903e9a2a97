"""Discovery of backends, and the one in use.

Plugins are found through the entry-point group ``ihvp.backends`` on first use, never at import, and each
is loaded inside a guard of its own, so that one broken plugin never breaks the others. Nothing here
imports a framework; only a record's ``factory`` does.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any

from ihvp.arguments import check_instance
from ihvp.backend import BackendPlugin
from ihvp.errors import BackendNotInstalled, BrokenBackend, UnknownBackend, describe

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

    Examples
    --------
    >>> import ihvp
    >>> info = next(info for info in ihvp.backends() if info.name == "numdiff")
    >>> info.installed, "product_error" in info.capabilities
    (True, True)
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

    from ihvp import hookspecs

    manager = pluggy.PluginManager("ihvp")
    manager.add_hookspecs(hookspecs)
    plugins: dict[str, BackendPlugin] = {}
    broken: dict[str, Exception] = {}
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            manager.register(entry.load(), name=entry.name)
        except Exception as error:
            broken[entry.name] = error
    for implementation in manager.hook.ihvp_backend.get_hookimpls():
        name = implementation.plugin_name
        try:
            plugins[name] = _checked(implementation.function(), name)
        except Exception as error:
            broken[name] = error
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
        name, framework, installed = plugin.name, plugin.framework, _installed(plugin)
        version = _version(framework) if installed else None
        rows.append(BackendInfo(name, framework, plugin.install, installed, version, plugin.capabilities))
    for name, error in found.broken.items():
        text = f"{type(error).__name__}: {error}"
        rows.append(BackendInfo(name, "", "", False, None, frozenset(), text))
    return sorted(rows, key=lambda row: row.name)


def usable_plugin(name: str) -> BackendPlugin:
    """The record of ``name``, whose framework is known to be installed.

    Raises UnknownBackend, BrokenBackend or BackendNotInstalled.
    """
    plugin = registered().plugin(name)
    if not _installed(plugin):
        raise BackendNotInstalled(name, plugin.framework, plugin.install)
    return plugin


class Selection:
    """A chosen backend; as a context manager it ends the choice on exit, once."""

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self.name, self.options = name, dict(options)
        self._token: Token[Selection | None] = selected.set(self)

    def __enter__(self) -> Selection:
        return self

    def __exit__(self, *exc: object) -> None:
        selected.reset(self._token)


selected: ContextVar[Selection | None] = ContextVar("ihvp_backend", default=None)


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
    check_instance("name", name, str, "the name of a backend that ihvp.backends() lists")
    usable_plugin(name)
    return Selection(name, options)
