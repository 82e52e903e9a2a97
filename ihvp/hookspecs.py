"""The one hook of the project, and the marker for its implementations: ``@hookimpl def ihvp_backend(): …``.

A module of its own, because ``import ihvp`` does without pluggy.
"""

from __future__ import annotations

import pluggy

from ihvp.backend import BackendPlugin

hookspec = pluggy.HookspecMarker("ihvp")
hookimpl = pluggy.HookimplMarker("ihvp")
"""Marks the function ``ihvp_backend`` of a plugin's entry module."""


@hookspec
def ihvp_backend() -> BackendPlugin:  # type: ignore[empty-body]
    """The record of one backend. Must import no framework."""
