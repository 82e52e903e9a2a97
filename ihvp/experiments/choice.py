"""Which backends an experiment compares."""

from __future__ import annotations

from functools import partial

import numpy as np

import ihvp._registry as registry
from ihvp._problems import Problem
from ihvp.backend import BackendPlugin, Dialect
from ihvp.errors import MissingCapability
from ihvp.objective import Objective
from ihvp.space import VectorSpace


def plugins(backend: str | None) -> list[BackendPlugin]:
    """The one asked for, or all that are installed and can run a loss written for every framework.

    A backend that cannot be used is UnknownBackend, BackendNotInstalled, BrokenBackend or MissingCapability.
    """
    if backend is not None:
        plugin = registry.usable_plugin(backend)
        dialect(plugin)
        return [plugin]
    installed = [registry.usable_plugin(info.name) for info in registry.backends() if info.installed]
    return [plugin for plugin in installed if plugin.dialect is not None]


def dialect(plugin: BackendPlugin) -> Dialect:
    """The plugin's dialect."""
    if plugin.dialect is None:
        raise MissingCapability(plugin.name, "dialect", "Choose another backend; `ihvp backends` lists them.")
    return plugin.dialect()


def eps(backend: str) -> float:
    """The machine epsilon of what the backend makes of float64 parameters: JAX's are float32 by default."""
    (plugin,) = plugins(backend)
    params = dialect(plugin).parameters({"w": np.zeros(1)})
    return VectorSpace.of(plugin.factory(params).flatten(params)).eps


def objective(problem: Problem, backend: str) -> Objective:
    """The problem's loss over its batch, on one backend."""
    (plugin,) = plugins(backend)
    written = dialect(plugin)
    params = written.parameters(problem.params)
    if plugin.differentiates == "gradient":
        return Objective(params=params, data=problem.batch, backend=backend, grad=problem.gradient)
    return Objective(partial(problem.loss, written.xp), params, problem.batch, backend=backend)
