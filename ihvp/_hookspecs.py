"""The one hook of the project: a plugin answers it with its record."""

from __future__ import annotations

import pluggy

from ihvp.backend import BackendPlugin

hookspec = pluggy.HookspecMarker("ihvp")
hookimpl = pluggy.HookimplMarker("ihvp")


@hookspec
def ihvp_backend() -> BackendPlugin:  # type: ignore[empty-body]
    """The record of one backend. Must import no framework."""
